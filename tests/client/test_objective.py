"""Losses and metrics of the tasks, by hand."""

import math

import pytest
import torch

from fedsim.client import Batch, ClientHalf
from fedsim.client.objective import (
    mean_scores,
    sample_losses,
    sample_losses_and_gradients,
    sample_scores,
    score_names,
)

LOG3 = math.log(3.0)


def close(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-12, atol=1e-12)


def test_classification():
    # softmax of (log 3, 0) is (3/4, 1/4)
    outputs = torch.tensor([[LOG3, 0.0], [LOG3, 0.0], [0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    close(
        sample_losses("classification", outputs, labels),
        [-math.log(0.75), -math.log(0.25), math.log(2)],
    )
    scores = sample_scores("classification", outputs, labels)
    assert tuple(scores) == score_names("classification") == ("loss", "accuracy")
    close(scores["accuracy"], [1, 0, 1])


def test_a_sequence_counts_as_the_mean_of_its_positions():
    right, wrong = [LOG3, 0.0], [0.0, LOG3]
    outputs = torch.tensor([[right, right], [right, wrong]], dtype=torch.float64)
    labels = torch.zeros(2, 2, dtype=torch.int64)
    losses = sample_losses("classification", outputs, labels)
    close(losses, [-math.log(0.75), -(math.log(0.75) + math.log(0.25)) / 2])
    close(sample_scores("classification", outputs, labels)["accuracy"], [1.0, 0.5])


def test_regression():
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 4.0], [3.0, -1.0]], dtype=torch.float64)
    close(sample_losses("regression", outputs, targets), [2.0, 5.0])
    scores = sample_scores("regression", outputs, targets)
    assert tuple(scores) == score_names("regression") == ("loss", "mse")
    close(scores["mse"], [2.0, 5.0])


def test_means_are_summed_in_double_precision():
    values = torch.full((3_000_000,), 0.1)
    assert mean_scores({"loss": values})["loss"] == pytest.approx(float(values[0]), rel=1e-12)


def test_the_default_criterion_is_the_mean_over_the_batch():
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 4.0], [3.0, -1.0]], dtype=torch.float64)

    class Context:
        task = "regression"

    assert float(ClientHalf().criterion(outputs, Batch(x=outputs, y=targets), Context())) == 3.5


def test_a_half_knows_what_it_overrides():
    class Mine(ClientHalf):
        def correct(self, grads, params, context):
            return grads

    levels = ("criterion", "loss", "correct", "upload")
    assert [ClientHalf().overrides(level) for level in levels] == [False] * 4
    assert [Mine().overrides(level) for level in levels] == [False, False, True, False]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_gradients_by_hand_are_those_of_autograd(task):
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(7, 4, generator=rng, dtype=torch.float64)
    targets = targets.argmax(1) if task == "classification" else targets
    losses = sample_losses(task, outputs, targets)
    (expected,) = torch.autograd.grad(losses.sum(), outputs)
    before = outputs.detach().clone()
    got, grads = sample_losses_and_gradients(task, before, targets)
    close(got, losses.tolist())
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(before, outputs)
