"""Every layer rule against autograd, one client at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.layers import RULES
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.records import Params

K, B = 3, 4
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def vectors(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def indices(vocabulary: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(vocabulary, (n, *shape))


Case = tuple[Callable[[], nn.Module], Callable[[int], Tensor]]
CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(5, 3), vectors(5)),
    "linear sequence": (lambda: nn.Linear(5, 3), vectors(6, 5)),
    "linear grid": (lambda: nn.Linear(5, 3), vectors(2, 3, 5)),
    "linear no bias": (lambda: nn.Linear(5, 3, bias=False), vectors(6, 5)),
    "linear one to one": (lambda: nn.Linear(1, 1), vectors(1)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), vectors(3, 6, 5)),
    "conv stride, padding": (
        lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2)),
        vectors(3, 7, 5),
    ),
    "conv stride that leaves a rest": (lambda: nn.Conv2d(2, 4, 3, stride=2), vectors(2, 6, 8)),
    "conv dilation": (lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=1), vectors(3, 7, 8)),
    "conv groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), vectors(4, 5, 5)),
    "conv depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), vectors(4, 5, 5)),
    "conv no bias": (lambda: nn.Conv2d(3, 4, 1, bias=False), vectors(3, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), vectors(3, 6)),
    "conv1d of every option": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        vectors(4, 9),
    ),
    "group norm": (lambda: nn.GroupNorm(2, 6), vectors(6, 3, 4)),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 6), vectors(6)),
    "group norm of one channel": (lambda: nn.GroupNorm(1, 1), vectors(1, 3, 4)),
    "layer norm": (lambda: nn.LayerNorm(6), vectors(6)),
    "layer norm of a sequence": (lambda: nn.LayerNorm(6), vectors(5, 6)),
    "layer norm over two axes": (lambda: nn.LayerNorm((3, 4)), vectors(2, 3, 4)),
    "layer norm with an axis of one": (lambda: nn.LayerNorm((1, 4)), vectors(2, 1, 4)),
    "layer norm no bias": (lambda: nn.LayerNorm(6, bias=False), vectors(5, 6)),
    "embedding": (lambda: nn.Embedding(7, 4), indices(7, 5)),
    "embedding of single tokens": (lambda: nn.Embedding(7, 4), indices(7)),
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make(case: str, active: int = K) -> tuple[nn.Module, Params, Tensor]:
    """Return (layer, weights of K clients `[K, ...]`, inputs `[active, B, ...]`)."""
    make_layer, make_input = CASES[case]
    layer = make_layer().double()
    weights = {n: torch.randn(K, *p.shape, dtype=p.dtype) for n, p in layer.named_parameters()}
    return layer, weights, make_input(active * B).unflatten(0, (active, B))


def alone(layer: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, Params, Tensor | None]:
    """Return (outputs, weight gradients, input gradient) of one client, by autograd."""
    leaves = {name: t.clone().requires_grad_() for name, t in params.items()}
    x = x.clone().requires_grad_(x.is_floating_point())
    y = functional_call(layer, leaves, (x,))
    inputs = [*leaves.values()] + ([x] if x.requires_grad else [])
    grads = torch.autograd.grad(weighed(y), inputs)
    own = dict(zip(leaves, grads, strict=False))
    return y.detach(), own, grads[-1] if x.requires_grad else None


def weighed(y: Tensor) -> Tensor:
    """Return a scalar in which every output has another, non-constant gradient."""
    return (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum() + y.pow(
        2
    ).sum()


def stacked_grads(
    stacked: StackedModel, weights: Params, x: Tensor, into: Params, alpha: float = 1.0
) -> Tensor:
    """Contract the gradient of the clients' summed losses into `into`; return the outputs."""
    active = len(x)
    stacked.tape.weights = weights
    y = stacked.forward(x.flatten(0, 1), active).unflatten(0, (active, B))
    stacked.contract_(into, stacked.backward(sum(weighed(part) for part in y)), alpha)
    return y.detach()


def test_every_rule_has_a_case():
    assert {type(make_layer()) for make_layer, _ in CASES.values()} == set(RULES)


@pytest.mark.parametrize("active", [K, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_each_client_alone(case, active):
    layer, weights, x = make(case, active)
    stacked = StackedModel(layer)
    grads = {name: torch.zeros_like(t) for name, t in weights.items()}
    y = stacked_grads(stacked, weights, x, grads)
    for k in range(active):
        params = {name: t[k] for name, t in weights.items()}
        expected, expected_grads, _ = alone(layer, params, x[k])
        torch.testing.assert_close(y[k], expected, **EXACT)
        for name, grad in grads.items():
            torch.testing.assert_close(grad[k], expected_grads[name], **EXACT)
            assert expected_grads[name].abs().max() > 0
    for grad in grads.values():
        assert (grad[active:] == 0).all()


@pytest.mark.parametrize("case", [c for c in CASES if "embedding" not in c])
def test_the_gradient_flows_on_to_the_input(case):
    layer, weights, x = make(case)
    stacked = StackedModel(layer)
    stacked.tape.weights = weights
    inputs = x.flatten(0, 1).requires_grad_()
    y = stacked.forward(inputs, K).unflatten(0, (K, B))
    (got,) = torch.autograd.grad(sum(weighed(part) for part in y), inputs)
    for k in range(K):
        _, _, expected = alone(layer, {name: t[k] for name, t in weights.items()}, x[k])
        torch.testing.assert_close(got.unflatten(0, (K, B))[k], expected, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_contracting_into_the_weights_is_a_step_of_the_active_clients(case):
    layer, weights, x = make(case, active=2)
    before = {name: t.clone() for name, t in weights.items()}
    stacked_grads(StackedModel(layer), weights, x, into=weights, alpha=-0.1)
    for k in range(2):
        _, grads, _ = alone(layer, {name: t[k] for name, t in before.items()}, x[k])
        for name, t in weights.items():
            torch.testing.assert_close(t[k], before[name][k] - 0.1 * grads[name], **EXACT)
    for name, t in weights.items():
        assert torch.equal(t[2], before[name][2])


@pytest.mark.parametrize("case", CASES)
def test_a_parameter_that_is_not_asked_for_is_left_alone(case):
    layer, weights, x = make(case)
    before = {name: t.clone() for name, t in weights.items()}
    for wanted in weights:
        grads = {wanted: torch.zeros_like(weights[wanted])}
        stacked_grads(StackedModel(layer), weights, x, into=grads)
        assert list(grads) == [wanted]
        _, expected, _ = alone(layer, {name: t[0] for name, t in weights.items()}, x[0])
        torch.testing.assert_close(grads[wanted][0], expected[wanted], **EXACT)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize(
    "case", [c for c in CASES if ("conv" in c and "1d" not in c) or c.endswith("one channel")]
)
def test_memory_format_does_not_matter(case):
    layer, weights, x = make(case)
    channels_last = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (K, B))
    got = {name: torch.zeros_like(t) for name, t in weights.items()}
    expected = {name: torch.zeros_like(t) for name, t in weights.items()}
    stacked_grads(StackedModel(layer), weights, channels_last, got)
    stacked_grads(StackedModel(layer), weights, x, expected)
    for name in weights:
        torch.testing.assert_close(got[name], expected[name], **EXACT)


@pytest.mark.parametrize("token", [-1, 7])
def test_an_index_outside_the_table_does_not_read_another_clients_row(token):
    layer, weights, x = make("embedding")
    x[1, 0, 0] = token
    stacked = StackedModel(layer)
    stacked.tape.weights = weights
    with pytest.raises(IndexError, match=rf"token {token} is outside \[0, 7\)"):
        stacked.forward(x.flatten(0, 1), K)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(7, 4, padding_idx=0), "padding_idx"),
        (nn.Embedding(7, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(7, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Conv2d(1, 1, 3, padding="same"), "named or non-zero padding"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "named or non-zero padding"),
    ],
)
def test_options_without_a_rule_are_refused(layer, reason):
    name = type(layer).__name__
    with pytest.raises(NoRuleError, match=rf"{name} '0': .*{reason}"):
        StackedModel(nn.Sequential(layer))
