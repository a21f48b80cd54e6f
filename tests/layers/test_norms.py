"""Norms and weighted sums of per-sample gradients, against autograd sample by sample, and Opacus.

`check` is the comparison, and `test_a_wrong_rule_is_caught` breaks each rule to see it fail.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import seeds
from fedsim.layers import base, shared
from fedsim.layers.base import StackedLayer
from fedsim.layers.conv import StackedConv2d
from fedsim.layers.embedding import StackedEmbedding
from fedsim.layers.linear import StackedLinear
from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.layers.norm import StackedGroupNorm, StackedLayerNorm
from fedsim.models.cnn import CNN
from fedsim.models.dropout import install
from fedsim.models.mlp import MLP
from fedsim.models.transformer import Transformer
from fedsim.records import Params
from tests.helpers import classification, make_model, tokens
from tests.layers.test_rules import CASES, Case, indices, vectors
from tests.layers.zoo import MODELS

K, B = 3, 4
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Twice(nn.Module):
    """Uses each layer on two inputs of its own kind."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        first = self.layer(x)
        return first + 2 * self.layer(x.flip(1) if x.is_floating_point() else x + 1)


class TwoTablesOneHead(nn.Module):
    """One matrix embeds the token and its successor, and is the head on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 8)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + 0.5 * self.table(x + 1)
        return self.head(torch.tanh(self.mix(h))) + self.head(h.mean(1)).unsqueeze(1)


class GroupNormCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.GroupNorm(2, 8), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(8, 12, 2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def frozen() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


MORE: dict[str, Case] = {
    "linear, few positions": (lambda: nn.Linear(7, 5), vectors(2, 7)),
    "linear, few positions on a grid": (lambda: nn.Linear(7, 5, bias=False), vectors(2, 2, 7)),
    "conv, few positions": (lambda: nn.Conv2d(6, 8, 3, padding=1, stride=2), vectors(6, 4, 3)),
    "conv groups, few positions": (
        lambda: nn.Conv2d(8, 8, 3, groups=2, dilation=2, padding=(1, 2)),
        vectors(8, 4, 3),
    ),
    "conv1d, few positions": (lambda: nn.Conv1d(6, 8, 3, groups=2), vectors(6, 5)),
    "embedding of a long text": (lambda: nn.Embedding(5, 4), indices(5, 40)),
    "linear twice": (lambda: Twice(nn.Linear(6, 5)), vectors(6)),
    "linear twice, sequence": (lambda: Twice(nn.Linear(6, 5)), vectors(7, 6)),
    "conv twice": (lambda: Twice(nn.Conv2d(3, 4, 3)), vectors(3, 5, 5)),
    "norm twice": (lambda: Twice(nn.LayerNorm(6)), vectors(5, 6)),
    "embedding twice": (lambda: Twice(nn.Embedding(8, 4)), indices(7, 5)),
    "two tables, one head": (TwoTablesOneHead, indices(7, 5)),
    "group norm cnn": (GroupNormCNN, vectors(1, 8, 8)),
    "frozen": (frozen, vectors(1, 8, 8)),
}


def zoo(name: str) -> Case:
    part, dataset = MODELS[name]
    return (lambda: make_model(part, dataset), lambda n: dataset.train_x[:n])


ALL: dict[str, Case] = {**CASES, **MORE, **{f"a {name}": zoo(name) for name in MODELS}}
assert len(ALL) == len(CASES) + len(MORE) + len(MODELS)


def make(case: Case, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Params, Tensor]:
    """Return (model, weights of K clients `[K, ...]`, inputs `[K, B, ...]`)."""
    make_model, make_input = case
    model = make_model().to(dtype).train()
    weights = {
        n: p.detach() + 0.3 * torch.randn(K, *p.shape, dtype=dtype)
        for n, p in model.named_parameters()
    }
    x = make_input(K * B).unflatten(0, (K, B))
    return model, weights, x.to(dtype) if x.is_floating_point() else x


def sample_losses(y: Tensor) -> Tensor:
    """Return `[N]` losses in which every output of a sample has another, non-constant gradient."""
    flat = y.flatten(1)
    slopes = torch.linspace(-1, 2, flat.shape[1], dtype=y.dtype)
    return flat @ slopes + 0.5 * flat.square().sum(1)


def dropout_of(k: int) -> torch.Generator:
    return seeds.torch_rng(0, 1, k, "dropout")


def by_autograd(model: nn.Module, weights: Params, x: Tensor) -> Params:
    """Return each sample's gradients, `[K, B, ...]`, in float64; frozen parameters have none."""
    model = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    grads: dict[str, list[Tensor]] = {name: [] for name in trained}
    for k in range(K):
        install(model, [dropout_of(k)], [B])
        leaves = {name: t[k].double().requires_grad_() for name, t in weights.items()}
        losses = sample_losses(functional_call(model, leaves, (x[k],)))
        inputs = [leaves[name] for name in trained]
        for loss in losses:
            own = torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)
            for name, grad in zip(trained, own, strict=True):
                grads[name].append(grad)
    return {name: torch.stack(rows).unflatten(0, (K, B)) for name, rows in grads.items()}


def run(model: nn.Module, weights: Params, x: Tensor) -> tuple[StackedModel, list[Tensor | None]]:
    """Return the stacked model after its forward and backward pass, and the output gradients."""
    stacked = StackedModel(model)
    stacked.tape.weights = weights
    install(stacked.module, [dropout_of(k) for k in range(len(x))], [x.shape[1]] * len(x))
    y = stacked.forward(x.flatten(0, 1), len(x))
    return stacked, stacked.backward(sample_losses(y).sum())


def close(got: Tensor, expected: Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Compare relative to the largest entry of each sample's or client's own row."""
    assert got.shape == expected.shape
    scale = expected.abs().flatten(1).amax(1).clamp_min(floor) if expected.dim() > 1 else floor
    error = (got.double() - expected).abs().flatten(1).amax(1)
    assert (error <= tolerance * scale + 1e-300).all(), (error, scale)


def check(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """Compare norms and weighted sums of all clients with those of autograd.

    Raises:
        AssertionError: They differ.
    """
    tolerance = TOLERANCE[dtype]
    model, weights, x = make(case, dtype)
    grads = by_autograd(model, weights, x)
    # A gradient that cancels (a bias in front of a normalisation) is all rounding.
    floor = max(float(grad.abs().max()) for grad in grads.values()) * 0.1
    squares = {name: grad.flatten(2).square().sum(2) for name, grad in grads.items()}
    factors = {name: torch.rand(K, B, dtype=dtype) for name in grads}
    for w in factors.values():
        w[0, 1] = 0
        w[1] = 0  # a client whose batch is all padding
    one = next(iter(factors.values()))
    ones = torch.ones(K, B, dtype=dtype)
    for weighting, w_of in (
        (factors, factors),
        (one, dict.fromkeys(grads, one)),
        (None, dict.fromkeys(grads, ones)),
    ):
        sums = {
            name: torch.einsum("kb,kb...->k...", w_of[name].double(), grad)
            for name, grad in grads.items()
        }
        for with_norms in (True, False):
            stacked, output_grads = run(model, weights, x)
            if with_norms:
                norms = stacked.square_norms(output_grads)
                assert list(norms) == list(stacked.trainable) == list(grads)
                for name, norm in norms.items():
                    assert (norm >= 0).all()
                    close(norm.unsqueeze(2), squares[name].unsqueeze(2), tolerance, floor**2)
            into = {name: torch.full_like(t, 0.125) for name, t in weights.items()}
            stacked.contract_(into, output_grads, -0.5, weighting)
            assert stacked.tape.records == []
            for name, t in into.items():
                if name in grads:
                    close((t.double() - 0.125) / -0.5, sums[name], tolerance, floor)
                    if weighting is not None:
                        assert (t[1] == 0.125).all()
                else:
                    assert (t == 0.125).all()


@pytest.mark.parametrize("name", ALL)
def test_norms_and_weighted_sums_are_those_of_autograd(name):
    check(ALL[name])


@pytest.mark.parametrize(
    "name", [*MORE, "conv", "linear sequence", "a transformer, tied", "a resnet"]
)
def test_and_in_single_precision(name):
    check(ALL[name], torch.float32)


@pytest.mark.parametrize("name", [*CASES, *MORE, "a transformer, tied"])
def test_neither_blocks_nor_what_is_kept_change_the_result(name, monkeypatch):
    monkeypatch.setattr(base, "BLOCK_BYTES", 1)
    monkeypatch.setattr(base, "KEPT_BYTES", 0)
    check(ALL[name])


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("linear", []),
        ("linear sequence", ["bias", "weight"]),
        ("linear, few positions", ["bias"]),
        ("conv", ["bias", "weight"]),
        ("conv, few positions", ["bias"]),
        ("conv groups", ["bias", "weight"]),
        ("conv groups, few positions", ["bias"]),
        ("conv1d of every option", ["bias", "weight"]),
        ("conv1d, few positions", ["bias"]),
        ("layer norm", ["bias", "weight"]),
        ("embedding", []),
    ],
)
def test_the_cases_cover_both_ways_to_a_norm(name, kept):
    stacked, output_grads = run(*make(ALL[name]))
    ((layer, a, _),), (g,) = stacked.tape.records, output_grads
    found: dict[str, Tensor] = {}
    layer.square_norms(a, g, found)
    assert sorted(found) == kept


def without(rule: type[StackedLayer], method: str, wrong: Callable[..., object]):
    """Return (class, attribute, replacement), which is given the right result first."""
    right = getattr(rule, method)

    def replacement(self, *args):
        return wrong(self, right(self, *args), *args)

    return rule, method, replacement


def forget(parameter: str):
    """Make the norm of one parameter zero, as if its term had been forgotten."""
    return lambda self, n, name, *rest: torch.zeros_like(n) if name == parameter else n


def first_position(self, n: Tensor, parameter: str, a: Tensor, g: Tensor, kept: object) -> Tensor:
    """Count each sample's positions as samples of their own: Σ ‖g_t‖² ‖a_t‖²."""
    right = g.square().sum(-1) * a.square().sum(-1)
    return right.flatten(1).sum(1) if parameter == "weight" else n


def by_occurrence(self, n: Tensor, parameter: str, a: Tensor, g: Tensor, kept: object) -> Tensor:
    """Forget that a token that occurs twice has one row of gradient."""
    return g.flatten(1).square().sum(1)


def half_kept(self, n: Tensor, parameter: str, a: Tensor, g: Tensor, kept: Params) -> Tensor:
    """Keep another gradient than the one whose norm was taken."""
    for grads in kept.values():
        grads.mul_(0.5)
    return n


def no_padding(self, patches: Tensor, a: Tensor) -> Tensor:
    """Lose what the last patch sees."""
    patches = patches.clone()
    patches[..., -1] = 0
    return patches


WRONG = {
    "linear: no bias": ("linear", *without(StackedLinear, "square_norm", forget("bias"))),
    "linear: no weight": ("linear", *without(StackedLinear, "square_norm", forget("weight"))),
    "linear: no pairs of positions": (
        "linear, few positions",
        *without(StackedLinear, "square_norm", first_position),
    ),
    "linear: no bias in sequences": (
        "linear sequence",
        *without(StackedLinear, "square_norm", forget("bias")),
    ),
    "linear: kept is not the gradient": (
        "linear sequence",
        *without(StackedLinear, "square_norm", half_kept),
    ),
    "conv: no bias": ("conv", *without(StackedConv2d, "square_norm", forget("bias"))),
    "conv: a patch lost": ("conv", *without(StackedConv2d, "_patches", no_padding)),
    "conv: a patch lost, few positions": (
        "conv, few positions",
        *without(StackedConv2d, "_patches", no_padding),
    ),
    "conv: kept is not the gradient": ("conv", *without(StackedConv2d, "square_norm", half_kept)),
    "conv1d: a patch lost": (
        "conv1d of every option",
        *without(StackedConv2d, "_patches", no_padding),
    ),
    "conv: groups not summed": (
        "conv groups, few positions",
        *without(
            StackedConv2d,
            "_grads",
            lambda self, right, g: right if self.groups == 1 else right.roll(1, 0),
        ),
    ),
    "group norm: no shift": (
        "group norm",
        *without(StackedGroupNorm, "square_norm", forget("bias")),
    ),
    "layer norm: no scale": (
        "layer norm",
        *without(StackedLayerNorm, "square_norm", forget("weight")),
    ),
    "layer norm: not normalised": (
        "layer norm of a sequence",
        *without(StackedLayerNorm, "instantiate", lambda self, right, p, a, g: (g * a).sum(1)),
    ),
    "embedding: tokens that occur twice": (
        "embedding of a long text",
        *without(StackedEmbedding, "square_norm", by_occurrence),
    ),
    "shared: no pairs of uses": (
        "a same module twice",
        shared,
        "_joined",
        lambda uses: sum(
            use.layer.square_norm("weight", use.a[:, None], use.g[:, None], {}) for use in uses
        ),
    ),
    "shared: no cross term of table and head": (
        "a transformer, tied",
        shared,
        "_tied",
        lambda table, head: torch.zeros(len(head.g), dtype=head.g.dtype),
    ),
    "shared: one use of two": (
        "conv twice",
        shared,
        "_instantiated",
        lambda uses: uses[0].layer.square_norm(uses[0].parameter, uses[0].a, uses[0].g, {}),
    ),
    "weights not applied": (
        "linear",
        StackedLayer,
        "contract_",
        lambda self, into, a, g, alpha, *_: [
            self.add_(p, self.rows(into, p), a, g, alpha) for p in self.trained
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name, monkeypatch):
    case, owner, attribute, replacement = WRONG[name]
    check(ALL[case])
    monkeypatch.setattr(owner, attribute, replacement)
    with pytest.raises(AssertionError):
        check(ALL[case])


@pytest.mark.parametrize(
    "name", ["a mlp", "a cnn", "a transformer, tied", "a residual", "group norm cnn"]
)
def test_a_padding_row_of_weight_0_adds_exactly_nothing(name):
    model, weights, x = make(ALL[name], torch.float32)
    w = torch.rand(K, B)
    w[:, -1] = 0
    w[1] = 0
    results = []
    for other in (1.0, 1e12):
        padded = x.clone()
        if x.is_floating_point():
            padded[:, -1] = other
        else:
            padded[:, -1] = 0 if other == 1 else 1
        stacked, output_grads = run(model, weights, padded)
        stacked.square_norms(output_grads)
        into = {n: torch.ones_like(t) for n, t in weights.items()}
        stacked.contract_(into, output_grads, 1.0, w)
        results.append(into)
    for n, t in results[0].items():
        assert torch.equal(t, results[1][n])
        assert (t[1] == 1).all()
        assert n.startswith("unused") or (t[0] != 1).any()


def test_gradients_that_were_not_normed_do_not_use_what_was_kept():
    model, weights, x = make(ALL["linear sequence"])
    w = torch.rand(K, B, dtype=torch.float64)
    stacked, output_grads = run(model, weights, x)
    stacked.square_norms(output_grads)
    doubled = [2 * g for g in output_grads]
    into = {n: torch.zeros_like(t) for n, t in weights.items()}
    stacked.contract_(into, doubled, 1.0, w)
    stacked, output_grads = run(model, weights, x)
    stacked.square_norms(output_grads)
    for g in output_grads:
        g.mul_(2)
    again = {n: torch.zeros_like(t) for n, t in weights.items()}
    stacked.contract_(again, output_grads, 1.0, w)
    grads = by_autograd(model, weights, x)
    for name, grad in grads.items():
        expected = 2 * torch.einsum("kb,kb...->k...", w, grad)
        torch.testing.assert_close(into[name], expected)
        torch.testing.assert_close(again[name], expected)


def test_an_output_that_the_loss_does_not_see_has_norm_0():
    model, weights, x = make(ALL["a residual"])
    stacked, output_grads = run(model, weights, x)
    norms = stacked.square_norms([None] * len(output_grads))
    assert set(norms) == set(weights)
    assert all(n.shape == (K, B) and (n == 0).all() for n in norms.values())
    norms = stacked.square_norms(output_grads)
    assert (norms["unused.weight"] == 0).all()
    assert (norms["first.weight"] > 0).all()


class FlattensPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.token(x).view(-1, 6)).view(*x.shape, 7)


def test_a_layer_that_saw_other_rows_than_samples_is_refused():
    case = (FlattensPositions, indices(7, 5))
    stacked, output_grads = run(*make(case))
    with pytest.raises(NoRuleError, match=r"'head.weight' saw 60 rows for 12 samples"):
        stacked.square_norms(output_grads)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(K, 1), r"weights of samples are \[3, 1\], not \[3, 4\]"),
        (torch.ones(K * B), r"weights of samples are \[12\], not \[3, 4\]"),
        ({"weight": torch.ones(K, B)}, "no weights of samples for 'bias'"),
        (
            {"weight": torch.ones(B, K), "bias": torch.ones(K, B)},
            r"samples for 'weight' are \[4, 3\]",
        ),
    ],
)
def test_weights_that_are_not_one_per_sample_are_refused(weights, message):
    model, params, x = make(ALL["linear"])
    stacked, output_grads = run(model, params, x)
    into = {n: torch.zeros_like(t) for n, t in params.items()}
    with pytest.raises(ValueError, match=message):
        stacked.contract_(into, output_grads, 1.0, weights)


IMAGES = classification(shape=(1, 8, 8))
OPACUS: dict[str, Case] = {
    "mlp": (lambda: make_model(MLP(hidden=[9, 7]), classification()), vectors(6)),
    "cnn": (lambda: make_model(CNN(channels=[4, 6], hidden=[5]), IMAGES), vectors(1, 8, 8)),
    "group norm cnn": MORE["group norm cnn"],
    "transformer": (
        lambda: make_model(Transformer(width=8, heads=2, layers=2), tokens()),
        indices(7, 5),
    ),
    "transformer, tied": (
        lambda: make_model(Transformer(width=8, heads=2, layers=2, tied=True), tokens()),
        indices(7, 5),
    ),
}
CLIP = 0.7


def by_hooks(model: nn.Module, x: Tensor) -> tuple[Tensor, Params]:
    """Return (norms `[B]`, clipped sums) of one client, from Opacus' per-sample gradients."""
    wrapped = GradSampleModule(model, loss_reduction="sum")
    sample_losses(wrapped(x)).sum().backward()
    grads = {n: p.grad_sample for n, p in model.named_parameters()}
    norms = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()
    factors = (CLIP / (norms + 1e-6)).clamp(max=1)
    return norms, {n: torch.einsum("b,b...->...", factors, g) for n, g in grads.items()}


def by_ghost(model: nn.Module, x: Tensor) -> tuple[Tensor, Params]:
    """Return the same by Opacus' ghost clipping: two backward passes."""
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )
    for layer in model.modules():
        if isinstance(layer, nn.Embedding):  # Opacus views the indices, which may be expanded
            layer.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    losses = sample_losses(wrapped(x))
    losses.sum().backward(retain_graph=True)
    norms, factors = wrapped.get_norm_sample(), wrapped.get_clipping_coef()
    wrapped.zero_grad()
    wrapped.disable_hooks()
    (factors * losses).sum().backward()
    return norms, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("opacus", [by_hooks, by_ghost])
@pytest.mark.parametrize("name", OPACUS)
def test_clipped_sums_are_those_of_opacus(name, opacus, dtype):
    if "tied" in name and opacus is by_ghost:
        opacus = by_hooks  # its ghost clipping refuses tied parameters
    model, weights, x = make(OPACUS[name], dtype)
    stacked, output_grads = run(model, weights, x)
    norms = torch.stack(list(stacked.square_norms(output_grads).values())).sum(0).sqrt()
    factors = (CLIP / (norms + 1e-6)).clamp(max=1)
    assert (factors < 1).any()
    sums = {n: torch.zeros_like(t) for n, t in weights.items()}
    stacked.contract_(sums, output_grads, 1.0, factors)
    for k in range(K):
        one = copy.deepcopy(model)
        one.load_state_dict({n: t[k] for n, t in weights.items()}, strict="tied" not in name)
        expected_norms, expected = opacus(one, x[k])
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(norms[k], expected_norms, rtol=tolerance, atol=0)
        difference = sum(float((sums[n][k] - t).square().sum()) for n, t in expected.items())
        size = sum(float(t.square().sum()) for t in expected.values())
        assert difference**0.5 <= tolerance * size**0.5
        # No bound is passed but by rounding, whatever the sample.
        assert size**0.5 <= CLIP * B * (1 + 1e-5)


@pytest.mark.parametrize("name", ["mlp", "transformer, tied", "cnn"])
def test_one_sample_moves_the_sum_by_at_most_the_clip(name):
    model, weights, x = make(OPACUS[name])
    sums = []
    for present in (1.0, 0.0):
        stacked, output_grads = run(model, weights, 3 * x if x.is_floating_point() else x)
        norms = torch.stack(list(stacked.square_norms(output_grads).values())).sum(0).sqrt()
        factors = (0.01 / (norms + 1e-6)).clamp(max=1)
        assert (factors < 1).all()
        factors[:, 2] *= present
        into = {n: torch.zeros_like(t) for n, t in weights.items()}
        stacked.contract_(into, output_grads, 1.0, factors)
        sums.append(into)
    squares = [(sums[0][n] - sums[1][n]).flatten(1).square().sum(1) for n in weights]
    moved = torch.stack(squares).sum(0).sqrt()
    assert (moved <= 0.01).all()
    assert (moved >= 0.0099).all()
