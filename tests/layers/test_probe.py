"""The probe refuses every model whose stacked clients would not train as they do alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.layers.model import NoRuleError, StackedModel
from fedsim.layers.probe import probe_independence, probe_samples
from tests.helpers import classification, make_model, make_runtime, tokens
from tests.layers.zoo import MODELS, Residual


class Around(nn.Module):
    """Linear -> something -> Linear; tokens are embedded first."""

    def __init__(self, between, embed: bool = False, before=nn.Identity()) -> None:  # noqa: B008
        super().__init__()
        self.before = before
        self.first = nn.Embedding(7, 6) if embed else nn.Linear(6, 6)
        self.between = between
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(self.before(x))))


class MinusBatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class MinusBatchMeanInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


class MixedOnlyInTheGradient(nn.Module):
    """Outputs are each sample's own; the gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.mean(0) - x.mean(0).detach())


class PositionOnce(nn.Module):
    """Looks one position up for all samples: under stacking, each client reads another's row."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(7, 6), nn.Embedding(4, 6)
        self.head = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.token(x) + self.position(torch.arange(x.shape[1])))


class TimeFirst(nn.Module):
    """Moves the batch axis away from the front before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.token(x).transpose(0, 1)).transpose(0, 1))


class ReadsTheWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.token(x) @ self.token.weight.T


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(2, 6))


class UnkeyedDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def neighbour(x: Tensor) -> Tensor:
    """Return the other sample of each pair, who belongs to the same client."""
    return x.view(-1, 2, x.shape[1]).flip(1).view(x.shape) if len(x) > 1 else torch.zeros_like(x)


class PairsOfSamples(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + neighbour(x)


class PairsInTheGradient(nn.Module):
    """Outputs are each sample's own; the gradient reaches the neighbour too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (neighbour(x) - neighbour(x).detach())


class RowPerPosition(nn.Module):
    """Folds positions into the batch axis; sums over samples are right, norms are not."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.token(x).view(-1, 6)).view(*x.shape, 7)


FLOATS = classification(n=4).train_x[:2]
TOKENS = tokens(length=4).train_x[:2]
batch_norm = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
batch_norm_of_sequences = nn.BatchNorm1d(4, affine=False, track_running_stats=False)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_can_be_stacked_passes(name):
    part, dataset = MODELS[name]
    runtime = make_runtime(dataset, part)
    probe_independence(StackedModel(runtime.model), runtime.initial_params(), dataset.train_x[:2])


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Around(batch_norm), FLOATS),
        (Around(nn.Identity(), before=batch_norm), FLOATS),
        (Around(batch_norm_of_sequences, embed=True), TOKENS),
        (Around(MinusBatchMean()), FLOATS),
        (Around(nn.Identity(), before=MinusBatchMean()), FLOATS),
        (Around(MinusBatchMean(), embed=True), TOKENS),
        (Around(MinusBatchMean(), embed=True), torch.zeros_like(TOKENS)),
        (Around(MinusBatchMeanInTraining()), FLOATS),
        (Around(MixedOnlyInTheGradient()), FLOATS),
        (PositionOnce(), TOKENS),
        (TimeFirst(), TOKENS),
        (Around(UnkeyedDropout()), FLOATS),
    ],
    ids=lambda value: type(getattr(value, "between", value)).__name__,
)
def test_a_model_that_mixes_samples_is_refused(model, x):
    with pytest.raises(NoRuleError, match="mixes samples of a batch, so clients cannot be stacked"):
        probe_independence(StackedModel(model), dict(model.named_parameters()), x)


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_a_model_that_can_be_stacked_pass(name):
    part, dataset = MODELS[name]
    runtime = make_runtime(dataset, part)
    probe_samples(StackedModel(runtime.model), runtime.initial_params(), dataset.train_x[:2])


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Around(PairsOfSamples()), FLOATS, "cannot be told apart from the others'"),
        (Around(PairsInTheGradient()), FLOATS, "cannot be told apart from the others'"),
        (RowPerPosition(), TOKENS, "'head.weight' saw 16 rows for 4 samples"),
    ],
    ids=lambda value: type(getattr(value, "between", value)).__name__,
)
def test_samples_that_are_mixed_within_their_client_are_refused(model, x, message):
    params = dict(model.named_parameters())
    probe_independence(StackedModel(model), params, x)  # no client sees another
    with pytest.raises(NoRuleError, match=message):
        probe_samples(StackedModel(model), params, x)


@pytest.mark.parametrize(
    "model", [Around(MinusBatchMean(), embed=True), PositionOnce(), TimeFirst()]
)
def test_samples_that_are_mixed_across_clients_are_refused(model):
    with pytest.raises(NoRuleError):
        probe_samples(StackedModel(model), dict(model.named_parameters()), TOKENS)


@pytest.mark.parametrize(("model", "x"), [(ReadsTheWeight(), TOKENS), (FixedBatch(), FLOATS)])
@pytest.mark.parametrize("probe", [probe_independence, probe_samples])
def test_a_forward_that_fails_on_stacked_clients_is_refused(model, x, probe):
    with pytest.raises(NoRuleError, match=r"the forward pass fails on stacked clients: .*Error"):
        probe(StackedModel(model), dict(model.named_parameters()), x)


@pytest.mark.parametrize("probe", [probe_independence, probe_samples])
def test_the_probe_leaves_no_trace(probe):
    model = make_model(Residual, classification())
    stacked = StackedModel(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.random.get_rng_state()
    probe(stacked, dict(model.named_parameters()), FLOATS)
    assert stacked.tape.weights == {}
    assert stacked.tape.records == []
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
