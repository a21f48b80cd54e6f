"""The clipped sums of a text classifier and of adapters are those of a plain loop over samples."""

import pytest
import torch
from torch.func import functional_call

from fedsim.client.objective import sample_losses
from fedsim.models.lora import LoRA
from fedsim.models.text_classifier import TextClassifier
from fedsim.models.transformer import Transformer
from privacy.dp_sgd import EPS
from tests.helpers import make_model, tokens
from tests.models.test_text_classifier import sentences
from tests.privacy._dp import (
    alone,
    at_once,
    dp_sgd,
    poisson_batches,
    private_runtime,
    start_of,
)

SMALL = {"width": 8, "heads": 2}
CASES = {
    "classifier": (TextClassifier(**SMALL), sentences()),
    "bag": (TextClassifier(**SMALL, layers=0), sentences()),
    "lora": (
        LoRA(base=TextClassifier(**SMALL), targets=["query_key_value", "mlp_in"], train=["head"]),
        sentences(),
    ),
    "lora, sequences": (
        LoRA(base=Transformer(**SMALL, layers=1, tied=True), targets=["mlp_out"], rank=2),
        tokens(),
    ),
}


def loop(runtime, batch, clip, denominator):
    """Each sample by itself: gradient, norm over all trained tensors, factor; then the sum."""
    params = start_of(runtime)
    leaves = {n: params[n].clone().requires_grad_() for n in runtime.trainable}
    total = {n: torch.zeros_like(params[n]) for n in runtime.trainable}
    for b in range(len(batch.y)):
        outputs = functional_call(runtime.model, {**params, **leaves}, (batch.x[b : b + 1],))
        value = sample_losses(runtime.dataset.task, outputs, batch.y[b : b + 1]).sum()
        grads = torch.autograd.grad(value, list(leaves.values()))
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        for name, grad in zip(leaves, grads, strict=True):
            total[name] += grad * min(1.0, clip / (float(norm) + EPS)) / denominator
    return total


@pytest.mark.parametrize("method", ["ghost", "hooks", "cohort"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_clipped_sums(name, method):
    part, data = CASES[name]
    chosen = dp_sgd(clip_norm=0.2, method="auto" if method == "cohort" else method)
    runtime = private_runtime(data, lambda: make_model(part, data).double(), chosen)
    batches = poisson_batches(runtime)
    found = (at_once if method == "cohort" else alone)(runtime, batches)
    clipped = 0
    for grads, batch in zip(found, batches, strict=True):
        expected = loop(runtime, batch, 0.2, 4)
        assert set(grads) == set(runtime.trainable)
        for key, tensor in expected.items():
            got = grads[key].reshape(tensor.shape)
            torch.testing.assert_close(got, tensor, rtol=1e-10, atol=1e-14)
            clipped += bool(tensor.any())
    assert clipped
