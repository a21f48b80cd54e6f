"""BVR-L-SGD in private form: the local steps, who takes them, their noise and their cost."""

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

import fedsim.client.whole as whole
from fedsim.client.whole import Cohort
from fedsim.data.dataset import Dataset
from fedsim.engines.cohort import Cohort as CohortEngine
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError, ResumeError
from fedsim.models.linear import LinearModel
from fedsim.models.mlp import MLP
from fedsim.participation.sampling import Poisson
from fedsim.records import Chunk, to_record
from privacy.clipped_strategy import Visit
from privacy.diff2 import Diff2DP
from strategies.bvr_l_sgd import BvrLSGD
from strategies.diff2 import Diff2
from tests.helpers import Everyone, distance, make_runtime, regression, run, shares
from tests.privacy._dp import private_runtime
from tests.strategies._toy import Masks, Nodes, Stacked, chunk, federate, model

SIZES = (7, 5, 12, 10)
ENGINES = {"in_process": InProcess(), "cohort": CohortEngine(chunk=3)}


def loose(**values):
    return BvrLSGD(
        **{"clip_gradients": 1e30, "clip_differences": 1e30, "clip_local": 1e30, **values}
    )


def small(strategy, data=None):
    data = data or regression(60)
    return make_runtime(
        data,
        MLP(hidden=[5], activation="softplus"),
        partition=shares(data, SIZES),
        half=strategy.client_half,
    )


def mean_gradient(runtime, params, index):
    leaves = {name: params[name].detach().requires_grad_() for name in runtime.trainable}
    outputs = runtime.apply({**params, **leaves}, runtime.dataset.train_x[index])
    loss = (outputs - runtime.dataset.train_y[index]).square().mean()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def reference(runtime, params, *, pairs, seed, lr, steps, parts):
    """The unclipped algorithm by plain autograd: SVRG-like steps of the client that is drawn."""
    everybody = np.concatenate([runtime.samples(k) for k in range(len(SIZES))])
    taken = [0] * len(SIZES)
    for pair in range(pairs):
        u = mean_gradient(runtime, params, everybody)
        old, new = params, {n: params[n] - lr * u[n] for n in params}
        worker = drawn(seed, 2 * pair + 2, len(SIZES))
        batches = np.array_split(runtime.samples(worker), parts)
        for _ in range(steps):
            batch = batches[taken[worker] % parts]
            taken[worker] += 1
            here, there = (mean_gradient(runtime, at, batch) for at in (new, old))
            u = {n: u[n] + here[n] - there[n] for n in u}
            old, new = new, {n: new[n] - lr * u[n] for n in new}
        params = new
    return params, taken


def drawn(seed, server_round, count):
    from fedsim import seeds

    return int(seeds.rng(seed, server_round, seeds.SERVER, "worker").integers(count))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("steps", "parts"), [(1, 1), (3, 2)])
def test_without_noise_or_clipping_it_is_the_algorithm_by_autograd(
    engine, steps, parts, monkeypatch
):
    """In float64, with unequal clients in ragged pieces and batches."""
    monkeypatch.setattr(whole, "PIECE", 4)
    strategy = loose(restart=3, server_lr=0.2, local_steps=steps, local_batches=parts)
    runtime = small(strategy)
    params, reports = run(runtime, ENGINES[engine], strategy=strategy, rounds=12)
    expected, taken = reference(
        runtime, runtime.initial_params(), pairs=6, seed=0, lr=0.2, steps=steps, parts=parts
    )
    assert len(set(np.flatnonzero(taken))) > 1  # several clients were drawn
    assert distance(params, expected) < 1e-12
    assert distance(params, runtime.initial_params()) > 1e-2
    assert all(len(report.admitted) == len(SIZES) for report in reports)


def test_the_rounds_of_gradients_are_those_of_diff2():
    """The first round of each is the same, clipping and all."""
    values = {"restart": 2, "clip_gradients": 0.5, "clip_differences": 0.4, "server_lr": 0.3}
    ends = []
    for strategy in (BvrLSGD(**values), Diff2(**values)):
        ends.append(run(small(strategy), InProcess(), strategy=strategy, rounds=1)[0])
    assert distance(*ends) == 0


def scalar(*pairs):
    x = torch.tensor([[a] for part in pairs for a, _ in part], dtype=torch.float64)
    y = torch.tensor([[b] for part in pairs for _, b in part], dtype=torch.float64)
    return Dataset(
        name="made_up", task="regression", train_x=x, train_y=y, test_x=x, test_y=y, num_outputs=1
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_two_local_steps_by_hand(engine):
    """One client: gradients 2 x (w x − y) of (1, 1), (2, 3); two batches of one record."""
    strategy = loose(server_lr=0.25, clip_local=4.0, local_steps=2, local_batches=2)
    data = scalar([(1.0, 1.0), (2.0, 3.0)])
    runtime = make_runtime(
        data,
        lambda: torch.nn.Linear(1, 1, bias=False),
        partition=shares(data, (2,)),
        half=strategy.client_half,
    )
    start = {"weight": torch.zeros(1, 1, dtype=torch.float64)}
    runtime.initial_params = lambda: {n: t.clone() for n, t in start.items()}
    # v = (−2 − 12)/2 = −7, θ1 = 7/4. Batch 1: 2 · 7/4 = 7/2 ≤ c = 7; u = −7/2, θ2 = 21/8.
    # Batch 2: 8 · 7/8 = 7, clipped to c = 4 · 7/8 = 7/2; u = 0, θ3 = 21/8.
    one, _ = run(runtime, ENGINES[engine], strategy=strategy, rounds=1)
    assert float(one["weight"]) == pytest.approx(7 / 4, rel=1e-15)
    strategy = loose(server_lr=0.25, clip_local=4.0, local_steps=2, local_batches=2)
    object.__setattr__(runtime, "half", strategy.client_half)
    two, _ = run(runtime, ENGINES[engine], strategy=strategy, rounds=2)
    assert float(two["weight"]) == pytest.approx(21 / 8, rel=1e-15)


def test_more_batches_than_records_leave_some_empty():
    """A step on an empty batch goes on with the estimate as it is."""
    strategy = loose(server_lr=0.1, local_steps=8, local_batches=8)
    params, _ = run(small(strategy), InProcess(), strategy=strategy, rounds=4)
    assert all(torch.isfinite(tensor).all() for tensor in params.values())


# --- the one that is drawn -----------------------------------------------------------------------


def turn(strategy, server_round, params, *, clients=(0, 1, 2, 3)):
    strategy.configure_train(
        server_round, to_record(params, zero_copy=True), ConfigRecord(), Nodes()
    )
    rows = torch.ones(len(clients), 3, dtype=torch.float64)
    if strategy.visit is not None:
        rows = 7.0 * rows * (torch.tensor(clients) == strategy.visit.worker)[:, None]
    return strategy.aggregate(strategy._round, Stacked(chunk(list(clients), rows, 1.0)))


def test_the_model_of_the_one_that_is_drawn_is_the_next():
    strategy = federate(BvrLSGD(server_lr=0.5), Masks(np.ones((20, 4))))
    params = model(0.0, 0.0, 0.0)
    visits = []
    for server_round in range(1, 9):
        params = turn(strategy, server_round, params)
        visits.append(strategy.visit)
        if server_round % 2 == 0:
            assert params["x"].tolist() == [7.0] * 3
    assert visits[::2] == [None] * 4
    workers = [drawn(0, server_round, 4) for server_round in (2, 4, 6, 8)]
    assert [visit.worker for visit in visits[1::2]] == workers
    assert visits[1] == Visit(worker=workers[0], batches=(0, 1, 2, 3))


def test_who_is_drawn_goes_on_where_it_stopped():
    strategy = federate(
        BvrLSGD(server_lr=0.5, local_steps=2, local_batches=3), Masks(np.ones((99, 1)))
    )
    params, batches = model(0.0, 0.0, 0.0), []
    for server_round in range(1, 9):
        params = turn(strategy, server_round, params, clients=(0,))
        batches += strategy.visit.batches if strategy.visit else []
    assert batches == [0, 1, 2, 0, 1, 2, 0, 1]


def test_one_that_does_not_answer_costs_a_restart():
    strategy = federate(BvrLSGD(server_lr=0.5, restart=100), Masks(np.ones((20, 4))))
    params = turn(strategy, 1, model(0.0, 0.0, 0.0))
    worker = drawn(0, 2, 4)
    after = turn(strategy, 2, params, clients=tuple(k for k in range(4) if k != worker))
    assert torch.equal(after["x"], params["x"])
    turn(strategy, 3, after)
    assert strategy.restarting and strategy.visit is None
    turn(strategy, 4, after)
    assert strategy.visit is not None
    turn(strategy, 5, after)
    assert not strategy.restarting


def test_a_round_without_anybody_leaves_the_local_steps_for_the_next():
    masks = np.ones((20, 4))
    masks[1] = 0
    strategy = federate(BvrLSGD(server_lr=0.5, restart=100), Masks(masks))
    params = turn(strategy, 1, model(0.0, 0.0, 0.0))
    assert torch.equal(turn(strategy, 2, params, clients=())["x"], params["x"])
    turn(strategy, 3, params)
    assert strategy.visit is not None


def test_state_of_diff2_is_refused():
    with pytest.raises(ResumeError, match="BVR-L-SGD"):
        BvrLSGD().load_state_dict(Diff2().state_dict())


def test_drawn_participants_are_refused():
    class Drawn(Everyone):
        def sampling(self):
            return Poisson(rate=0.5)

    strategy = BvrLSGD()
    with pytest.raises(ConfigError, match="participation=full"):
        run(small(strategy), InProcess(), strategy=strategy, schedule=Drawn(4), rounds=1)


# --- noise and sensitivity -----------------------------------------------------------------------


def private(part, strategy, *, seed=0, sizes=SIZES, data=None):
    return private_runtime(
        data or regression(60),
        LinearModel(),
        part,
        sizes=sizes,
        half=strategy.client_half,
        strategy=strategy,
        seed=seed,
        rounds=10,
    )


def local_cohort(runtime, strategy, *, clip=None, step=0.1, worker=1):
    """The drawn client's cohort, from a θ_1 that is `step` away from θ_0 in every coordinate."""
    start = {n: t + 0.3 for n, t in runtime.initial_params().items()}
    arrays = {f"previous/{n}": (t - step).unsqueeze(0) for n, t in start.items()}
    arrays |= {f"estimate/{n}": torch.zeros_like(t).unsqueeze(0) for n, t in start.items()}
    return Cohort(
        runtime,
        clients=np.array([worker]),
        server_round=2,
        params=start,
        client_arrays=arrays,
        told={"worker": worker, "first-batch": 0},
    )


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_the_noise_of_a_local_step_has_its_law(trust):
    """E‖u_1 − exact‖² = d (c z3 / b)², whoever is trusted with the sums of gradients."""
    strategy, ratios = BvrLSGD(clip_local=2.0, local_steps=1, local_batches=2, server_lr=1.0), []
    runtime = private(Diff2DP(epsilon=3.0, trust=trust), strategy)
    mechanism, cohort = strategy.mechanism, local_cohort(runtime, strategy)
    strategy.mechanism = None
    exact = runtime.half.run(cohort).arrays
    strategy.mechanism = mechanism
    for seed in range(200):
        mechanism.seed = seed
        noisy = runtime.half.run(cohort).arrays
        errors = torch.cat([(noisy[n] - exact[n]).flatten() for n in noisy])
        c = 2.0 * 0.1 * math.sqrt(len(errors))
        std = mechanism.schedule.local_noise * c / 3  # 5 records in two batches: 3 and 2
        ratios.append(float(errors.square().sum()) / (len(errors) * std**2))
    assert abs(np.mean(ratios) - 1) < 5 * math.sqrt(2 / (200 * len(errors)))
    told = {"worker": 1, "first-batch": 0}
    before = {n: t.clone() for n, t in noisy.items()}
    mechanism.seal_(noisy, cohort.start, cohort.clients, 2, cohort.counts, told)
    assert all(torch.equal(noisy[n], before[n]) for n in noisy)  # no noise on top of that


def test_one_record_moves_the_sum_of_its_batch_alone_and_by_no_more_than_is_claimed():
    data = regression(60)
    strategy = BvrLSGD(clip_local=0.5, local_steps=1, local_batches=2, server_lr=1.0)
    runtime = small(strategy, data)

    def moves(first):
        cohort = local_cohort(runtime, strategy)
        cohort.told["first-batch"] = first
        arrays = runtime.half.run(cohort).arrays
        return torch.cat([rows.flatten() for rows in arrays.values()])

    size = sum(t.numel() for t in runtime.initial_params().values())
    clip = 0.5 * 0.1 * math.sqrt(size)
    before = [moves(first) for first in (0, 1)]
    batches = np.array_split(runtime.samples(1), 2)
    largest = 0.0
    for which, batch in enumerate(batches):
        for place in batch.tolist():
            x, y = data.train_x[place].clone(), data.train_y[place].clone()
            data.train_x[place], data.train_y[place] = -1e3 * x, 1e4
            after = [moves(first) for first in (0, 1)]
            data.train_x[place], data.train_y[place] = x, y
            change = float((after[which] - before[which]).norm()) * len(batch)
            assert torch.equal(after[1 - which], before[1 - which])
            assert change <= 2 * clip * (1 + 1e-9)
            largest = max(largest, change / (2 * clip))
    assert largest > 0.5


def test_steps_of_other_clients_are_zeros():
    strategy = BvrLSGD()
    runtime = small(strategy)
    cohort = local_cohort(runtime, strategy, worker=1)
    cohort.clients = np.array([2])
    arrays = runtime.half.run(cohort).arrays
    assert all(not tensor.any() for tensor in arrays.values())


def test_chunks_of_replies_are_searched_for_the_one():
    strategy = federate(BvrLSGD(server_lr=0.5), Masks(np.ones((20, 4))))
    params = turn(strategy, 1, model(0.0, 0.0, 0.0))
    strategy.configure_train(2, to_record(params, zero_copy=True), ConfigRecord(), Nodes())
    rows = [float(k == strategy.visit.worker) * torch.full((1, 3), 5.0) for k in range(4)]
    pieces = [
        Chunk(
            client_index=np.array([k]),
            arrays={"x": rows[k].double()},
            metrics={"num-examples": np.ones(1)},
        )
        for k in (3, 1, 0, 2)
    ]
    after = strategy.aggregate(strategy._round, Stacked(*pieces))
    assert after["x"].tolist() == [5.0] * 3
