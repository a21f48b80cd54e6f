"""Local SGD: batches, learning rates, steps; values by hand or from torch.optim."""

import itertools

import numpy as np
import pytest
import torch

from fedsim.client import LocalSGD
from fedsim.errors import ConfigError


def positions(work: LocalSGD, n: int, *, seed=0, server_round=1, client=0) -> list[list[int]]:
    return [b.tolist() for b in work.batches(seed, server_round, client, n)]


@pytest.mark.parametrize(
    ("n", "lengths"), [(10, [4, 4, 2]), (8, [4, 4]), (4, [4]), (3, [3]), (1, [1])]
)
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_epoch_visits_each_sample_once_and_its_last_batch_may_be_short(n, lengths, epochs):
    batches = positions(LocalSGD(batch_size=4, epochs=epochs), n)
    assert [len(b) for b in batches] == lengths * epochs
    for epoch in range(epochs):
        one_pass = batches[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(itertools.chain(*one_pass)) == list(range(n))


def test_epochs_are_shuffled_afresh():
    batches = positions(LocalSGD(batch_size=100, epochs=2), 20)
    assert batches[0] != batches[1]
    assert batches[0] != sorted(batches[0])


@pytest.mark.parametrize(
    ("n", "length", "per_pass"), [(10, 4, 2), (8, 4, 2), (4, 4, 1), (3, 3, 1), (1, 1, 1)]
)
def test_steps_skip_short_batches_and_reshuffle_when_a_pass_is_over(n, length, per_pass):
    batches = positions(LocalSGD(batch_size=4, epochs=None, steps=7), n)
    assert [len(b) for b in batches] == [length] * 7
    for start in range(0, 7, per_pass):
        one_pass = list(itertools.chain(*batches[start : start + per_pass]))
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(n))


def test_a_client_without_samples_takes_no_step():
    for work in (LocalSGD(epochs=2), LocalSGD(epochs=None, steps=5)):
        assert work.batches(0, 1, 0, 0) == []
        assert work.num_steps(0) == 0


@pytest.mark.parametrize("work", [LocalSGD(batch_size=4, epochs=2), LocalSGD(epochs=None, steps=5)])
@pytest.mark.parametrize("n", [1, 3, 4, 9, 40])
def test_the_number_of_steps_is_that_of_the_batches(work, n):
    assert work.num_steps(n) == len(work.batches(0, 1, 0, n))


def test_batches_are_a_pure_function_of_seed_round_and_client():
    work = LocalSGD(batch_size=8)
    keys = list(itertools.product([0, 1], [1, 2], [0, 1]))
    draws = [positions(work, 50, seed=s, server_round=r, client=c) for s, r, c in keys]
    again = [positions(work, 50, seed=s, server_round=r, client=c) for s, r, c in reversed(keys)]
    assert draws == again[::-1]
    assert len({str(d) for d in draws}) == len(keys)


def test_the_first_permutation_is_pinned():
    """Changing it changes every result ever published with a seed."""
    assert positions(LocalSGD(batch_size=4), 6) == [[4, 5, 2, 0], [1, 3]]


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (LocalSGD(lr=0.8), {1: 0.8, 2: 0.8, 1000: 0.8}),
        (
            LocalSGD(lr=0.8, schedule="step", decay=0.5, decay_every=10),
            {1: 0.8, 10: 0.8, 11: 0.4, 20: 0.4, 21: 0.2, 31: 0.1},
        ),
        (
            LocalSGD(lr=0.8, schedule="cosine", decay_every=6),
            # 0.4 (1 + cos(pi d / 6)) for d = 0, 2, 3, 4, 6 rounds done; zero ever after
            {1: 0.8, 3: 0.6, 4: 0.4, 5: 0.2, 7: 0.0, 100: 0.0},
        ),
        (LocalSGD(lr=0.8, warmup_rounds=3), {1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8, 5: 0.8}),
        (
            # FedLD's code: multipliers 0, .2, .4, .6, .8, then 1
            LocalSGD(lr=0.8, warmup_rounds=5, warmup_from_zero=True),
            {1: 0.0, 2: 0.16, 3: 0.32, 4: 0.48, 5: 0.64, 6: 0.8, 7: 0.8},
        ),
        (LocalSGD(lr=0.8, warmup_from_zero=True), {1: 0.8, 2: 0.8}),
        (
            LocalSGD(lr=0.8, warmup_rounds=3, schedule="step", decay=0.5, decay_every=2),
            {1: 0.2, 2: 0.4, 3: 0.3, 4: 0.4, 5: 0.2},
        ),
    ],
)
def test_learning_rates_by_hand(work, expected):
    got = {r: work.lr_at(r) for r in expected}
    assert got == pytest.approx(expected, rel=1e-14, abs=1e-15)


def test_the_step_is_that_of_torch_optim():
    rng = torch.Generator().manual_seed(0)
    start = {name: torch.randn(4, 3, generator=rng, dtype=torch.float64) for name in "ab"}
    for momentum, decay in [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)]:
        work = LocalSGD(momentum=momentum, weight_decay=decay)
        params = {name: t.clone() for name, t in start.items()}
        leaves = {name: t.clone().requires_grad_() for name, t in start.items()}
        optimiser = torch.optim.SGD(leaves.values(), momentum=momentum, weight_decay=decay, lr=1.0)
        velocity = {}
        for lr in (0.1, 0.1, 0.02, 0.3):
            optimiser.param_groups[0]["lr"] = lr
            for leaf in leaves.values():
                leaf.grad = torch.randn(4, 3, generator=rng, dtype=torch.float64)
            grads = {name: leaf.grad.clone() for name, leaf in leaves.items()}
            optimiser.step()
            work.step_(params, grads, velocity, lr)
            for name in params:
                torch.testing.assert_close(params[name], leaves[name].detach(), rtol=0, atol=1e-15)
        assert bool(velocity) == bool(momentum)


def test_the_step_does_not_write_into_the_gradients():
    work = LocalSGD(momentum=0.9, weight_decay=0.1)
    params, grads, velocity = {"w": torch.ones(2)}, {"w": torch.ones(2)}, {}
    for _ in range(2):
        work.step_(params, grads, velocity, 0.1)
        assert torch.equal(grads["w"], torch.ones(2))


@pytest.mark.parametrize("both", [{"epochs": 1, "steps": 1}, {"epochs": None, "steps": None}])
def test_exactly_one_of_epochs_and_steps(both):
    with pytest.raises(ConfigError, match="set exactly one of them"):
        LocalSGD(**both)


def test_batches_do_not_touch_global_generators():
    before = np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # noqa: NPY002
    LocalSGD(epochs=None, steps=3).batches(0, 1, 2, 30)
    assert (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == before  # noqa: NPY002
