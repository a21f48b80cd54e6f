"""What holds of all robust rules: hand values, order, breakdown, integers; and Flower's own."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg

from fedsim.records import Chunk
from fedsim.strategy import Round
from strategies.bulyan import Bulyan
from strategies.geometric_median import GeometricMedian
from strategies.krum import Krum
from strategies.median import Median
from strategies.trimmed_mean import TrimmedMean
from tests.strategies._robust import aggregate, column
from tests.strategies._toy import Stacked, ToyGrid, everyone, finish, loop, quadratic

F, N = 3, 15
RULES = {
    "median": Median(),
    "trimmed mean": TrimmedMean(beta=0.2),
    "Krum": Krum(num_malicious=F),
    "Multi-Krum": Krum(num_malicious=F, num_selected=None),
    "Bulyan": Bulyan(num_malicious=F),
    "geometric median": GeometricMedian(),
}


def honest(count, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, generator=rng, dtype=dtype)


@pytest.mark.parametrize(
    ("values", "expected"), [((3, 1, 2), 2), ((4, 1, 2, 9), 3), ((5,), 5), ((1, 2), 1.5)]
)
def test_median_by_hand(values, expected):
    assert aggregate(Median(), column(*values)).item() == expected


@pytest.mark.parametrize(
    ("beta", "values", "expected"),
    [
        (0.2, (0, 1, 2, 3, 100), 2),
        (0.2, (0, 1, 2, 9), 3),  # ⌊0.8⌋ = 0
        (0.4, (0, 1, 5, 6, 100), 5),
        (0.0, (0, 1, 5), 2),
        (0.49999999999, (1, 3), 2),
    ],
)
def test_trimmed_mean_by_hand(beta, values, expected):
    assert aggregate(TrimmedMean(beta=beta), column(*values)).item() == expected


def test_the_share_is_not_that_of_a_rounded_product():
    """0.29 · 100 is 28.999…; 29 are to be cut at either end."""
    values = torch.arange(100, dtype=torch.float64)[:, None] ** 3
    expected = values[29:71].mean().item()
    assert aggregate(TrimmedMean(beta=0.29), values).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Median(), FedMedian), (TrimmedMean(beta=0.2), FedTrimmedAvg)],
)
@pytest.mark.parametrize("count", [1, 4, 11])
def test_flowers_are_the_same_rule(ours, theirs, count):
    """Over rounds, through messages, admission and float32; and Flower's by the same formula."""
    nodes = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    start = {"x": torch.tensor([0.5, -2.0]), "w": torch.ones(2, 2)}

    def answer(message):
        client = message.metadata.dst_node_id % 11
        return [quadratic(message, centre=float(client**2 % 7), lr=0.3, examples=1 + client)]

    results = [
        finish(loop(strategy, ToyGrid(count, answer), everyone(count, 4)), start)[0]
        for strategy in (ours, theirs(**nodes))
    ]
    for name in start:
        assert torch.allclose(*(result[name] for result in results), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_who_sent_which_update_does_not_count(name):
    updates = honest(N)
    expected = aggregate(RULES[name], updates)
    for seed in range(3):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(N))
        assert torch.allclose(aggregate(RULES[name], updates[order]), expected, rtol=1e-9)


def corners(kind, dtype, size):
    """F attackers: on one spot, on opposite sides, or each elsewhere."""
    rng = torch.Generator().manual_seed(9)
    return {
        "together": torch.full((F, 8), size, dtype=dtype),
        "opposed": torch.full((F, 8), size, dtype=dtype) * torch.tensor([[1], [-1], [1]]),
        "apart": torch.randn(F, 8, generator=rng, dtype=dtype).clamp(-1, 1) * size,
    }[kind]


@pytest.mark.parametrize(
    ("size", "dtype"), [(1e30, torch.float32), (3e38, torch.float32), (1e200, torch.float64)]
)
@pytest.mark.parametrize("kind", ["together", "opposed", "apart"])
@pytest.mark.parametrize("name", RULES)
def test_breakdown(name, kind, size, dtype):
    """F of N attackers, as far out as floats go, leave the result among the honest updates."""
    good = honest(N - F, dtype=dtype)
    updates = torch.cat([corners(kind, dtype, size), good])
    result = aggregate(RULES[name], updates)
    assert torch.isfinite(result).all()
    if name == "geometric median":  # the bound of its theorem, about any centre
        radius = 2 * (N - F) / (N - 2 * F) * (good - good.mean(0)).norm(dim=1).max()
        assert (result - good.mean(0)).norm() <= radius
    slack = 1e-5 if dtype == torch.float32 else 1e-9
    assert (result >= good.min(0).values - slack).all()
    assert (result <= good.max(0).values + slack).all()


@pytest.mark.parametrize("name", RULES)
def test_one_attacker_more_than_a_rule_stands(name):
    """The control of the test above: past its number, each rule follows the attackers."""
    majority = N // 2 + 1
    updates = torch.cat([torch.full((majority, 8), 1e6, dtype=torch.float64), honest(N - majority)])
    assert aggregate(RULES[name], updates).abs().max() > 1e4


@pytest.mark.parametrize("name", RULES)
def test_integers_are_averaged_but_do_not_tell_who_is_close(name):
    """A counter of 1000 times the weights' size must not decide whom Krum selects."""
    updates = honest(N)
    seen = torch.arange(N) * 1000
    clients = np.arange(N)
    params = {"x": torch.zeros(8, dtype=torch.float64), "seen": torch.tensor(7)}
    everybody = Chunk(
        client_index=clients,
        arrays={"x": updates, "seen": seen},
        metrics={"num-examples": np.ones(N)},
    )
    context = Round(server_round=1, num_clients=N, asked=clients, params=params)
    result = RULES[name].aggregate(context, Stacked(everybody))
    assert torch.allclose(result["x"], aggregate(RULES[name], updates), rtol=1e-12)
    assert result["seen"].dtype == torch.int64
    assert 0 <= result["seen"].item() <= seen.max().item()


@pytest.mark.parametrize("name", RULES)
def test_server_lr(name):
    updates = honest(N)
    strategy = type(RULES[name])(
        **{k: v for k, v in vars(RULES[name]).items() if not k.startswith("_")} | {"server_lr": 0.5}
    )
    expected = 0.5 * aggregate(RULES[name], updates)
    assert torch.allclose(aggregate(strategy, updates), expected, rtol=1e-12)
