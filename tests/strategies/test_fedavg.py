"""FedAvg and the average over all by hand: x = (1, 2), y_0 = (2, 4), y_1 = (5, -2)."""

import numpy as np
import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.records import Chunk
from fedsim.strategy import Round
from strategies.average_all import AverageAll
from strategies.fedavg import FedAvg
from tests.strategies._toy import Stacked, chunk, equal, model

X = model(1.0, 2.0)
Y_0, Y_1 = [2.0, 4.0], [5.0, -2.0]


def aggregate(strategy, *chunks, params=X, num_clients=2):
    context = Round(
        server_round=1, num_clients=num_clients, asked=np.arange(num_clients), params=params
    )
    return strategy.aggregate(context, Stacked(*chunks))


def both(examples):
    return chunk([0, 1], torch.tensor([Y_0, Y_1], dtype=torch.float64), examples)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (FedAvg(), [4.25, -0.5]),  # (1 * y_0 + 3 * y_1) / 4
        (FedAvg(server_lr=0.5), [2.625, 0.75]),  # half way there from x
        (FedAvg(server_lr=2.0), [7.5, -3.0]),
        (FedAvg(weighting="uniform"), [3.5, 1.0]),
        (AverageAll(), [3.5, 1.0]),  # N = 2 and both replied
        (AverageAll(server_lr=10.0), [26.0, -8.0]),
    ],
)
def test_two_clients_by_hand(strategy, expected):
    result = aggregate(strategy, both([1, 3]))["x"]
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


def test_one_of_two_replies():
    reply = chunk([1], torch.tensor([Y_1], dtype=torch.float64), 7)
    np.testing.assert_allclose(aggregate(FedAvg(), reply)["x"].numpy(), Y_1, rtol=1e-12)
    np.testing.assert_allclose(aggregate(AverageAll(), reply)["x"].numpy(), [3.0, 0.0], rtol=1e-12)


def test_weights_that_floats_cannot_hold_exactly():
    """(0.1 w_0 + 0.7 w_1) / (w_0 + w_1), in float64, against Python's own arithmetic."""
    rows = torch.tensor([[0.1], [0.7]], dtype=torch.float64)
    result = aggregate(FedAvg(), chunk([0, 1], rows, [3, 9_999_999]), params=model(123.456))
    expected = (0.1 * 3 + 0.7 * 9_999_999) / 10_000_002
    assert result["x"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAvg(weighting="uniform"), AverageAll()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_replies_leave_the_model_bit_equal(strategy, dtype):
    params = {
        "x": torch.tensor([0.1, -0.0, 1e-30], dtype=dtype),
        "count": torch.tensor(7),
    }
    assert equal(aggregate(strategy, params=params), params)


def test_chunks_add_up():
    rows = torch.arange(10, dtype=torch.float64)[:, None]
    examples = np.arange(1, 11)
    whole = aggregate(FedAvg(), chunk(range(10), rows, examples), params=model(0.0))
    parts = [chunk(range(i, i + 2), rows[i : i + 2], examples[i : i + 2]) for i in range(0, 10, 2)]
    split = aggregate(FedAvg(), *parts, params=model(0.0))
    assert whole["x"].item() == pytest.approx(330 / 55, rel=1e-12)
    assert split["x"].item() == pytest.approx(330 / 55, rel=1e-12)


def test_integer_buffers_are_rounded_and_keep_their_type():
    params = {"x": torch.zeros(1), "seen": torch.tensor(10), "mask": torch.tensor([True, False])}
    rows = {
        "x": torch.tensor([[1.0], [2.0]]),
        "seen": torch.tensor([13, 14]),
        "mask": torch.tensor([[True, True], [False, True]]),
    }
    metrics = {"num-examples": np.array([1.0, 2.0])}
    replies = Chunk(client_index=np.arange(2), arrays=rows, metrics=metrics)
    result = aggregate(FedAvg(), replies, params=params)
    assert result["seen"].dtype == torch.int64
    assert result["seen"].item() == 14  # 13.67
    assert result["mask"].tolist() == [False, True]  # 1/3 and 1
    assert result["x"].tolist() == pytest.approx([5 / 3])


def test_finite_replies_cannot_overflow_the_mean():
    """3e38 is almost the largest float32, and a claimed weight of 10^7 would carry it over."""
    rows = torch.full((3, 2), 3e38)
    result = aggregate(
        FedAvg(), chunk(range(3), rows, 10_000_000), params=model(0, 0, dtype=torch.float32)
    )
    assert result["x"].tolist() == pytest.approx([3e38, 3e38])


@pytest.mark.parametrize(
    "settings", [{"weighting": "size"}, {"server_lr": 0.0}, {"server_lr": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FedAvg(**settings)
