"""Whole models with stacked layers against autograd, one client at a time."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fedsim.models
from fedsim import seeds
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.models.autoencoder import Autoencoder
from fedsim.models.base import ModelPart
from fedsim.models.dropout import install
from fedsim.models.none import NoModel
from fedsim.models.pretrained import Pretrained
from fedsim.records import Params
from tests.helpers import make_model
from tests.layers.zoo import MODELS, inplace_first

K, B = 3, 4


def test_every_model_of_fedsim_is_here():
    parts = set()
    for info in pkgutil.iter_modules(fedsim.models.__path__):
        for _, found in inspect.getmembers(
            import_module(f"fedsim.models.{info.name}"), inspect.isclass
        ):
            if issubclass(found, ModelPart) and found is not ModelPart:
                parts.add(found)
    parts.remove(Pretrained)  # another part's layers, with weights from a file
    parts.remove(NoModel)  # of strategies that ask
    parts.remove(Autoencoder)  # strategies train it whole, many at once: tests/test_stacked_fit.py
    assert parts == {type(part) for part, _ in MODELS.values() if isinstance(part, ModelPart)}


def make(name: str) -> tuple[nn.Module, Params, Tensor]:
    """Return (model, K clients' weights, inputs `[K, B, ...]`), all in float64."""
    part, dataset = MODELS[name]
    model = make_model(part, dataset).double().train()
    rng = torch.Generator().manual_seed(1)
    weights = {
        n: p.detach() + 0.1 * torch.randn(K, *p.shape, generator=rng, dtype=torch.float64)
        for n, p in model.named_parameters()
    }
    return model, weights, dataset.train_x[: K * B].unflatten(0, (K, B))


def alone(model: nn.Module, params: Params, x: Tensor, client: int) -> tuple[Tensor, Params]:
    install(model, [seeds.torch_rng(0, 1, client, "dropout")], [B])
    leaves = {name: t.clone().requires_grad_() for name, t in params.items()}
    y = functional_call(model, leaves, (x,))
    inputs = list(leaves.values())
    grads = torch.autograd.grad(y.pow(2).sum() + y.sum(), inputs, materialize_grads=True)
    return y.detach(), dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("active", [K, 2])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_each_client_alone(name, active):
    model, weights, x = make(name)
    stacked = StackedModel(model)
    stacked.tape.weights = weights
    install(
        stacked.module, [seeds.torch_rng(0, 1, k, "dropout") for k in range(active)], [B] * active
    )
    y = stacked.forward(x[:active].flatten(0, 1), active)
    grads = {n: torch.zeros_like(t) for n, t in weights.items()}
    stacked.contract_(grads, stacked.backward(y.pow(2).sum() + y.sum()), 1.0)
    outputs = y.detach().unflatten(0, (active, B))
    for k in range(active):
        expected, expected_grads = alone(model, {n: t[k] for n, t in weights.items()}, x[k], k)
        torch.testing.assert_close(outputs[k], expected, rtol=1e-11, atol=1e-12)
        for n, grad in grads.items():  # none is made for what is frozen
            expected = expected_grads[n] if n in stacked.trainable else torch.zeros_like(grad[k])
            torch.testing.assert_close(grad[k], expected, rtol=1e-11, atol=1e-12)
    assert all((grad[active:] == 0).all() for grad in grads.values())


@pytest.mark.parametrize("active", [K, 2])
@pytest.mark.parametrize("name", ["linear", "mlp", "tanh", "nested"])
def test_chains_by_hand_are_what_autograd_makes_of_them(name, active):
    if name in MODELS:
        model, weights, x = make(name)
    else:
        model, weights, x = chain(name)
    stacked = StackedModel(model)
    stacked.tape.weights = weights
    folded = x[:active].flatten(0, 1)
    y = stacked.forward(folded, active)
    expected = stacked.backward((y.pow(2) + y).sum())
    recorded = [(layer, a) for layer, a, _ in stacked.tape.records]
    with torch.no_grad():
        by_hand = stacked.forward_by_hand(folded, active)
        grads = stacked.backward_by_hand(2 * by_hand + 1)
    torch.testing.assert_close(by_hand, y.detach(), rtol=1e-12, atol=1e-12)
    for (layer, a), (other, b, _) in zip(recorded, stacked.tape.records, strict=True):
        assert layer is other
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


def chain(name):
    """Return (model, weights, inputs) of chains that the zoo does not have."""
    layers = {
        "tanh": [nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Tanh()],
        "nested": [nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Identity())],
    }[name]
    model = nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3)).double()
    rng = torch.Generator().manual_seed(1)
    weights = {
        n: torch.randn(K, *p.shape, generator=rng, dtype=torch.float64)
        for n, p in model.named_parameters()
    }
    return model, weights, torch.randn(K, B, 6, generator=rng, dtype=torch.float64)


def test_what_is_no_chain():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    hooked = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    hooked[1].register_forward_hook(lambda module, args, y: y + 1)
    inside = nn.Sequential(nn.Linear(6, 3), nn.Flatten(), nn.Linear(3, 3))
    unknown = nn.Sequential(nn.Linear(6, 3), nn.GELU())
    early = nn.Sequential(nn.ReLU(), nn.Linear(6, 3))
    for model in (Own(nn.Linear(6, 3)), hooked, inside, unknown, early):
        assert StackedModel(model).chain is None
    assert StackedModel(nn.Sequential(nn.Linear(6, 3))).chain is not None
    with pytest.raises(NoRuleError, match="Twice"):
        StackedModel(nn.Sequential(Twice(6, 3)))


def test_tied_weights_are_one_parameter_with_the_gradients_of_both_uses():
    model, weights, _ = make("transformer, tied")
    assert "tokens.weight" in weights
    assert "head.weight" not in weights
    stacked = StackedModel(model)
    assert stacked.module.head.names == stacked.module.tokens.names == {"weight": "tokens.weight"}


def test_frozen_parameters_are_not_trainable_and_not_touched():
    model = inplace_first().double()
    model[0].weight.requires_grad_(False)
    stacked = StackedModel(model)
    assert stacked.trainable == ("0.bias", "2.weight", "2.bias")


def test_the_users_model_is_left_as_it_was():
    model = inplace_first()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    StackedModel(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.LeakyReLU, nn.Linear]
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_without_gradients_nothing_is_recorded():
    model, weights, x = make("mlp")
    stacked = StackedModel(model)
    stacked.tape.weights = weights
    with torch.no_grad():
        stacked.forward(x.flatten(0, 1), K)
    assert stacked.tape.records == []


class MyLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class RawParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.temperature


class ParameterInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(6, 3))])


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(6))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)),
            "buffer '1.running_mean' of BatchNorm1d has no layer rule",
        ),
        (
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)),
            "BatchNorm1d '0' has no layer rule",
        ),
        (nn.Sequential(nn.Linear(6, 4), MyLinear(4, 3)), "MyLinear '1' has no layer rule"),
        (nn.Sequential(nn.Linear(6, 4), nn.PReLU()), "PReLU '1' has no layer rule"),
        (nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 3)), "LSTM '1' has no layer rule"),
        (nn.MultiheadAttention(4, 1), "MultiheadAttention '' has no layer rule"),
        (RawParameter(), "RawParameter '' has no layer rule"),
        (ParameterInAList(), "ParameterList 'weights' has no layer rule"),
        (nn.Sequential(Mask(), nn.Linear(6, 3)), "buffer '0.mask' of Mask has no layer rule"),
    ],
)
def test_what_has_no_rule_is_named(model, message):
    with pytest.raises(NoRuleError) as caught:
        StackedModel(model)
    assert str(caught.value) == message
