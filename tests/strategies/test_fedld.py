"""FedLD against its paper and code: values by hand, the code's own algorithm, limits, guards."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.client.half import Batch, ClientContext, ClientHalf
from fedsim.client.work import LocalSGD
from fedsim.config import build_part, compose
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError, ResumeError
from fedsim.models.mlp import MLP
from fedsim.records import NUM_EXAMPLES, Chunk
from fedsim.strategy import Round
from strategies.fedavg import FedAvg
from strategies.fedld import FedLD, MarginControl
from tests import helpers
from tests.strategies._toy import Stacked, chunk

HALF, ROOT = 0.5, 0.75**0.5  # cosine and sine of 60 degrees


def moved(**settings):
    """A strategy past its first round, in which the one tensor moved."""
    strategy = FedLD(**{"margin": "none", **settings})
    strategy.load_state_dict({"moved": np.array([True])})
    return strategy


def aggregate(strategy, updates, *, start=None, split=None, server_round=2):
    """The real `aggregate`'s move, for updates `[M, ...]` around some model."""
    updates = torch.as_tensor(updates, dtype=torch.float64)
    start = torch.linspace(-1, 2, updates[0].numel()).double().view(updates[0].shape)
    context = Round(
        server_round=server_round,
        num_clients=len(updates),
        asked=np.arange(len(updates)),
        params={"x": start},
    )
    rows = start + updates
    parts = torch.split(rows, split or len(rows))
    firsts = np.cumsum([0, *(len(part) for part in parts)])
    chunks = [chunk(range(a, a + len(p)), p) for a, p in zip(firsts, parts, strict=False)]
    return strategy.aggregate(context, Stacked(*chunks))["x"] - start


def published(updates, keep):
    """The published code's steps on one tensor: SVD, flips, every client's revised update."""
    g = torch.as_tensor(updates, dtype=torch.float64)
    m = len(g)
    _, s, e = torch.linalg.svd(g @ g.T / m)
    v = e @ g  # rows: directions
    w = v[: max(1, int(keep * m))].clone()
    for j in range(len(w)):
        inner = g @ w[j]
        if (inner >= 0).sum() < (inner < 0).sum():
            w[j] = -w[j]
    revised = torch.zeros_like(g)
    for i in range(m):
        for j in range(len(w)):
            along = g[i] @ w[j] / (w[j] @ w[j]) * w[j]
            revised[i] += along * s[j] / s.sum() * g[i].norm() / along.norm()
    return revised.mean(0)


def close(got, expected, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(got), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol
    )


# --- the server half: by hand ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "keep", "expected"),
    [
        ((HALF, ROOT), 0.5, (0.6495191, 0.375)),
        ((HALF, ROOT), 1.0, (0.6495191, 0.375)),
        ((-HALF, ROOT), 0.5, (0.0, 0.0)),  # two that conflict, one direction: nothing is left
        ((-HALF, ROOT), 1.0, (0.125, 0.2165064)),
    ],
)
def test_two_clients_by_hand(second, keep, expected):
    close(aggregate(moved(keep=keep), [(1.0, 0.0), second]), expected, atol=5e-8)


def test_two_clients_have_less_than_the_mean():
    update = aggregate(moved(keep=0.5), [(1.0, 0.0), (HALF, ROOT)])
    assert float(update.norm()) == pytest.approx(0.75, abs=1e-12)
    mean = aggregate(moved(aggregation="mean"), [(1.0, 0.0), (HALF, ROOT)])
    assert float(mean.norm()) == pytest.approx(0.8660254, abs=5e-8)


def test_a_client_orthogonal_to_the_others_by_hand():
    """int(0.8 * 3) = 2 directions; the code divides 0 by 0 here."""
    rows = [(1.0, 0.0, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 2.0)]
    update = aggregate(moved(), rows)
    close(update, (0.1590093, 0.0795046, 0.4444444), atol=5e-8)
    a = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64).T, update)
    close(a, (0.0993808, 0.0993808, 0.2222222), atol=5e-8)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("keep", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("settings", [{}, {"memory_mb": 0}])
def test_equals_the_published_steps(count, keep, settings):
    rng = torch.Generator().manual_seed(count)
    for spread in (0.3, 3.0):
        common = torch.randn(40, generator=rng, dtype=torch.float64)
        rows = common + spread * torch.randn(count, 40, generator=rng, dtype=torch.float64)
        close(aggregate(moved(keep=keep, **settings), rows), published(rows, keep))


def random_rows():
    rng = torch.Generator().manual_seed(3)
    return torch.randn(5, 40, generator=rng, dtype=torch.float64)


def rotation():
    rng = torch.Generator().manual_seed(4)
    return torch.linalg.qr(torch.randn(40, 40, generator=rng, dtype=torch.float64))[0]


EQUIVARIANT = {
    "rotation": (lambda g: g @ rotation(), lambda u: u @ rotation()),
    "scale": (lambda g: 7.5 * g, lambda u: 7.5 * u),
    "sign": (lambda g: -g, lambda u: -u),
    "order": (lambda g: g[[3, 0, 4, 2, 1]], lambda u: u),
}


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_equivariance(name):
    before, after = EQUIVARIANT[name]
    update = aggregate(moved(), random_rows())
    close(aggregate(moved(), before(random_rows())), after(update))
    assert float((before(random_rows()) - random_rows()).norm()) > 1


def test_chunks_do_not_matter():
    whole = aggregate(moved(), random_rows())
    for split in (1, 2, 4):
        assert torch.equal(aggregate(moved(), random_rows(), split=split), whole)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clients_that_agree_are_followed_exactly(count):
    row = random_rows()[:1]
    close(aggregate(moved(), row.repeat(count, 1)), row[0])


def test_a_single_client_is_followed():
    """The code keeps int(0.8) = 0 directions of one client, and would stand still."""
    close(aggregate(moved(), random_rows()[:1]), random_rows()[0])


def test_orthogonal_clients_are_finite():
    """Each direction is one client's: its share of the variance, over the number of clients."""
    update = aggregate(moved(), np.diag([4.0, 3.0, 2.0, 1.0, 0.5]))
    share = np.array([16, 9, 4, 1, 0]) / (16 + 9 + 4 + 1 + 0.25)
    close(update, share * np.array([4, 3, 2, 1, 0]) / 5)


def test_updates_that_are_zero_leave_the_model():
    assert not aggregate(moved(), torch.zeros(4, 3)).any()


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_updates_beyond_the_reach_of_squares_are_averaged(size):
    rows = size * torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double()
    start, count = torch.zeros(2).double(), np.arange(2)
    context = Round(server_round=2, num_clients=2, asked=count, params={"x": start})
    update = moved().aggregate(context, Stacked(chunk(count, rows)))["x"]
    assert torch.equal(update / size, torch.tensor([0.5, 1.5]).double())


def test_shrinks_where_clients_differ():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = torch.randn(5, 40, generator=rng, dtype=torch.float64)
        rows += 2 * torch.randn(40, generator=rng, dtype=torch.float64)
        a = torch.linalg.lstsq(rows.T, aggregate(moved(), rows)).solution
        assert 0.2 < float(a.sum()) < 1


def test_server_lr_scales_the_update():
    update = aggregate(moved(), random_rows())
    close(aggregate(moved(server_lr=2.5), random_rows()), 2.5 * update)


# --- where the plain mean is used --------------------------------------------------------------


def model_round(strategy, tensors, server_round=2):
    """One round on a model of several tensors: name -> (start, updates `[M, ...]`)."""
    params = {name: start for name, (start, _) in tensors.items()}
    arrays = {name: start + updates for name, (start, updates) in tensors.items()}
    count = len(next(iter(arrays.values())))
    context = Round(
        server_round=server_round, num_clients=count, asked=np.arange(count), params=params
    )
    examples = np.arange(1.0, count + 1)
    replies = Chunk(client_index=np.arange(count), arrays=arrays, metrics={NUM_EXAMPLES: examples})
    new = strategy.aggregate(context, Stacked(replies))
    return {name: new[name] - params[name] for name in params}


def spread_rows(count=5, size=4):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, size, generator=rng, dtype=torch.float64)


def test_the_first_round_is_the_plain_mean_and_sizes_do_not_count():
    strategy = FedLD(margin="none")
    tensors = {"w": (torch.zeros(4).double(), spread_rows())}
    close(model_round(strategy, tensors, 1)["w"], spread_rows().mean(0))
    close(model_round(strategy, tensors, 2)["w"], published(spread_rows(), 0.8))


def test_an_empty_round_is_no_first_round():
    strategy = FedLD(margin="none")
    context = Round(server_round=1, num_clients=3, asked=np.arange(0), params={"w": torch.zeros(4)})
    assert strategy.aggregate(context, Stacked()) is context.params
    assert strategy.state_dict() == {}


def test_a_tensor_that_has_not_moved_is_averaged():
    """The published warm-up trains its first round at learning rate 0."""
    strategy, zero = FedLD(margin="none"), torch.zeros(4).double()
    still = {"a": (zero, torch.zeros(5, 4).double()), "b": (zero, spread_rows())}
    moving = {"a": (zero, spread_rows()), "b": (zero, spread_rows())}
    model_round(strategy, still, 1)
    assert strategy.state_dict()["moved"].tolist() == [False, True]
    second = model_round(strategy, moving, 2)
    close(second["a"], spread_rows().mean(0))
    close(second["b"], published(spread_rows(), 0.8))
    close(model_round(strategy, moving, 3)["a"], published(spread_rows(), 0.8))


def test_a_tensor_of_one_element_is_averaged():
    update = aggregate(moved(), [[1.0], [2.0], [6.0]])
    close(update, [3.0])


@pytest.mark.parametrize("buffers", ["pca", "mean"])
def test_buffers(buffers):
    """Integers are rounded; batch norms' buffers are known by what torch.nn calls them."""
    rows = spread_rows()
    tensors = {
        "layer.weight": (torch.zeros(4).double(), rows),
        "odd_name.running_mean": (torch.zeros(4).double(), rows),
        "odd_name.num_batches_tracked": (torch.tensor(10), torch.tensor([1, 1, 2, 2, 2])),
        "counts": (torch.tensor([100, 100, 100, 100]), (100 * rows).long()),
    }
    strategy = FedLD(margin="none", buffers=buffers)
    strategy.load_state_dict({"moved": np.ones(4, bool)})
    update = model_round(strategy, tensors)
    principal, mean = published(rows, 0.8), rows.mean(0)
    close(update["layer.weight"], principal)
    close(update["odd_name.running_mean"], principal if buffers == "pca" else mean)
    assert update["odd_name.num_batches_tracked"].item() == 2  # 1.6
    whole = (100 * rows).long().double()
    expected = published(whole, 0.8) if buffers == "pca" else whole.mean(0)
    assert update["counts"].tolist() == expected.round().long().tolist()


def test_aggregation_mean_is_the_uniform_average():
    close(aggregate(moved(aggregation="mean"), random_rows()), random_rows().mean(0))


# --- state ---------------------------------------------------------------------------------------


def test_state_of_another_model_is_refused():
    strategy = FedLD()
    strategy.load_state_dict({"moved": np.ones(3, bool)})
    with pytest.raises(ResumeError, match="3 tensors, this one has 1"):
        aggregate(strategy, random_rows())


@pytest.mark.parametrize(
    "settings", [{"keep": 0.0}, {"keep": 1.1}, {"margin": "logit"}, {"margin_weight": -0.1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FedLD(**settings)


# --- the client half -----------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
BATCH = Batch(x=torch.zeros(2, 1), y=torch.tensor([0, 2]))


def context(task="classification"):
    return ClientContext(
        task=task, model=lambda p, x: x, start={}, arrays={}, server_round=1, lr=0.1, steps=1
    )


@pytest.mark.parametrize(
    ("margin", "expected"),
    [("none", 0.6342292), ("softmax_batch", 0.7065060), ("logits_mean", 0.7238171)],
)
def test_loss_by_hand(margin, expected):
    half = FedLD(margin=margin, margin_weight=0.1).client_half
    assert float(half.criterion(LOGITS, BATCH, context())) == pytest.approx(expected, abs=5e-8)
    assert float(LOGITS.softmax(1).square().sum()) == pytest.approx(1.0601283, abs=5e-8)


def test_gradient_of_the_softmax_margin_in_closed_form():
    """2 lambda / (1 + S) * p * (p - |p|^2): nothing where the prediction is uniform."""
    leaf = LOGITS.clone().requires_grad_()
    with_margin = MarginControl("softmax_batch", 0.1).criterion(leaf, BATCH, context())
    (with_margin - F.cross_entropy(leaf, BATCH.y)).backward()
    p = LOGITS.softmax(1)
    square = p.square().sum(1, keepdim=True)
    close(leaf.grad, 0.2 / (1 + square.sum()) * p * (p - square), atol=1e-15)
    assert leaf.grad[1].abs().max() < 1e-16
    assert leaf.grad[0].abs().max() > 1e-3


def test_gradient_of_the_logit_margin_in_closed_form():
    leaf = LOGITS.clone().requires_grad_()
    with_margin = MarginControl("logits_mean", 0.1).criterion(leaf, BATCH, context())
    (with_margin - F.cross_entropy(leaf, BATCH.y)).backward()
    norm = LOGITS.square().sum(1, keepdim=True)
    close(leaf.grad, 0.1 / 2 * 2 * LOGITS / (1 + norm), atol=1e-15)


def test_sequences_are_batches_of_positions():
    z = LOGITS.view(1, 2, 3)
    batch = Batch(x=BATCH.x, y=BATCH.y.view(1, 2))
    for margin in ("softmax_batch", "logits_mean"):
        half = MarginControl(margin, 0.1)
        flat = half.criterion(LOGITS, BATCH, context())
        close(half.criterion(z, batch, context()), flat)


def test_a_margin_of_weight_zero_is_no_margin():
    assert type(FedLD(margin_weight=0.0).client_half) is ClientHalf
    assert not FedLD(margin="none").client_half.overrides("criterion")
    assert FedLD().client_half.overrides("criterion")
    assert not FedLD().client_half.overrides("loss")  # it runs on the layer rules


def test_a_margin_needs_classes():
    with pytest.raises(ConfigError, match=r"regression; use strategy.margin=none"):
        MarginControl("logits_mean", 0.1).criterion(LOGITS, BATCH, context("regression"))


# --- whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", ["softmax_batch", "logits_mean", "none"])
def test_cohort_agrees_with_the_sequential_reference(margin):
    data = helpers.classification(shape=(8,))
    sizes = (20, 7, 31, 12, 30)

    def run(engine):
        strategy = FedLD(margin=margin, margin_weight=0.3)
        runtime = helpers.make_runtime(
            data,
            MLP(hidden=[16]),
            partition=helpers.shares(data, sizes),
            half=strategy.client_half,
            work=LocalSGD(lr=0.2, batch_size=8, epochs=2, momentum=0.5),
        )
        return helpers.run(runtime, engine, strategy=strategy, rounds=6)[0]

    one_by_one = run(InProcess())
    assert helpers.distance(run(Cohort(chunk=2, plan="rules")), one_by_one) < 1e-5


def test_a_model_with_batch_norm_keeps_its_kind():
    data = helpers.classification(shape=(8,))

    def normed():
        return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    for buffers in ("pca", "mean"):
        strategy = FedLD(buffers=buffers)
        runtime = helpers.make_runtime(
            data,
            normed,
            partition=helpers.shares(data, (20, 30, 25, 25)),
            half=strategy.client_half,
        )
        params, _ = helpers.run(runtime, InProcess(), strategy=strategy, rounds=3)
        start = runtime.initial_params()
        assert {n: (t.dtype, t.shape) for n, t in params.items()} == {
            n: (t.dtype, t.shape) for n, t in start.items()
        }
        assert int(params["1.num_batches_tracked"]) > 0
        assert not torch.equal(params["1.running_mean"], start["1.running_mean"])


def test_agreeing_clients_make_fedavg():
    """Every client holds the same samples: one update, whatever the rule."""
    data = helpers.classification(shape=(8,))
    order = np.tile(np.arange(30), 3)
    partition = helpers.ArrayPartition(order, np.array([0, 30, 60, 90]))
    results = []
    for strategy in (FedAvg(), FedLD(margin="none")):
        runtime = helpers.make_runtime(
            data,
            MLP(hidden=[8]),
            partition=partition,
            work=LocalSGD(lr=0.1, batch_size=30, epochs=2),
        )
        results.append(helpers.run(runtime, InProcess(), strategy=strategy, rounds=4)[0])
    assert helpers.distance(results[1], results[0]) < 1e-5


def test_the_presets_differ_where_paper_and_code_do():
    def part(group, name):
        return build_part(compose("base", [f"{group}={name}"]), group)

    paper, code = part("strategy", "fedld"), part("strategy", "fedld_released_code")
    assert (paper.margin, paper.buffers) == ("logits_mean", "mean")
    assert (code.margin, code.buffers) == ("softmax_batch", "pca")
    assert (paper.keep, paper.server_lr) == (code.keep, code.server_lr) == (0.8, 1.0)
    work = part("client", "fedld_released_code")
    multipliers = [work.lr_at(r) / work.lr for r in range(1, 8)]
    assert multipliers == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert part("client", "fedld").lr_at(1) == work.lr
