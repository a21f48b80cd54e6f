"""A client half that overrides each level gives the same result under every plan, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.client import ClientHalf, LocalSGD, Shift
from fedsim.client.cohort import evaluate_personal
from fedsim.client.gradient import Plain
from fedsim.client.half import Batch, ClientContext
from fedsim.client.objective import sample_losses
from fedsim.client.sequential import evaluate_client, train_client
from fedsim.engines.cohort import choose_trainer
from fedsim.errors import ConfigError
from fedsim.models.cnn import CNN
from fedsim.models.mlp import MLP
from fedsim.models.transformer import Transformer
from fedsim.records import NUM_EXAMPLES, Params
from tests.helpers import RAGGED, classification, make_runtime, regression, shares, tokens
from tests.layers.zoo import Residual

CLIENTS = np.arange(len(RAGGED))


class LogOfSquares(ClientHalf):
    """A loss that is no sum over the batch: the mean loss plus log(1 + sum of squared outputs)."""

    def criterion(self, outputs, batch, context):
        mean = sample_losses(context.task, outputs, batch.y).mean()
        return mean + 0.3 * torch.log1p(outputs.square().sum())


class BatchSpread(ClientHalf):
    """Another one, which also reads the inputs, the round, the model's start and own arrays."""

    def criterion(self, outputs, batch, context):
        centred = outputs - outputs.mean(0)
        own = context.arrays["scale"] * context.start["output.bias"].sum() * context.server_round
        return (centred.square().sum() * batch.x.square().mean() + own * outputs.sum()) * context.lr


class Distance(ClientHalf):
    """The whole loss: two forward passes and the parameters themselves."""

    def loss(self, params: Params, batch: Batch, context: ClientContext):
        apart = sum((params[n] - context.start[n]).square().sum() for n in context.start)
        old = context.model(context.start, batch.x)
        new = context.model(params, batch.x)
        return self.criterion(new, batch, context) + 0.1 * apart + (new - old).square().mean()


class FedProx(ClientHalf):
    def correct(self, grads, params, context):
        return {n: g + 0.5 * (params[n] - context.start[n]) for n, g in grads.items()}


class Scaffold(ClientHalf):
    """Control variates by client; the new one goes back beside the model."""

    def correct(self, grads, params, context):
        return {n: g + context.arrays[f"control.{n}"] for n, g in grads.items()}

    def upload(self, params, context):
        scale = 1 / (context.lr * (context.steps + 1))
        return {f"control.{n}": (context.start[n] - params[n]) * scale for n in params}


class Everything(LogOfSquares, FedProx):
    def upload(self, params, context):
        return {
            "norm": sum(p.square().sum() for p in params.values()),
            "lr": torch.tensor(context.lr),
        }


class Pulled(ClientHalf):
    """A shift of both kinds, its offset missing one parameter and naming one that is none."""

    def shift(self, context):
        offset = {n: 2 * context.arrays[f"control.{n}"] for n in context.start}
        offset.pop("output.bias", None)
        return Shift(pull=0.3, offset={**offset, "nobody": context.arrays["scale"]})


class Pushed(Distance):
    """A shift by an offset alone, of a half that also replaces the loss."""

    def shift(self, context):
        return Shift(offset={n: context.arrays[f"control.{n}"] for n in context.start})


class Near(ClientHalf):
    def shift(self, context):
        return Shift(pull=0.3)


class Anchored(ClientHalf):
    """Each client is pulled to a place of its own."""

    def shift(self, context):
        return Shift(pull=0.4, anchor={n: context.arrays[f"control.{n}"] for n in context.start})


class Whole(LogOfSquares):
    """Sends back the gradient of its whole loss, at the model as it came."""

    full_gradient = True

    def upload(self, params, context):
        return {n: g + context.arrays["scale"] for n, g in context.gradient.items()}


class OwnStart(ClientHalf):
    """Begins elsewhere for each client, and names few of its own tensors; the rest is shared."""

    def begin(self, params, context):
        name = "output.bias"
        return {**params, name: params[name] + context.arrays[f"control.{name}"]}


class Phases(OwnStart, FedProx):
    """Output layer frozen in the first steps, the others in the last; a client's own share."""

    def frozen(self, context):
        first = context.step + 1 < context.arrays["scale"] * context.steps
        return {"output.weight": first, "output.bias": first, "hidden1.weight": first == False}  # noqa: E712


class Curved(ClientHalf):
    """A gradient that takes two derivatives, another model's too, and that changes what is own."""

    def gradient(self, params, batch, context):
        grads, loss = self.loss_gradient(params, batch, context)

        def slope(trained):
            inner, _ = self.loss_gradient({**params, **trained}, batch, context)
            return sum((inner[name] * grads[name]).sum() for name in grads)

        bent, _ = context.grad(slope, {name: params[name] for name in grads})
        arrays = dict(context.arrays)
        own = {n: t + arrays[f"control.{n}"] for n, t in params.items()}
        own_grads, _ = self.loss_gradient(own, batch, context)
        for name, grad in own_grads.items():
            arrays[f"control.{name}"] = arrays[f"control.{name}"] - context.lr * grad
        arrays["scale"] = arrays["scale"] + context.step
        return {n: g - 0.1 * bent[n] for n, g in grads.items()}, loss, arrays

    def upload(self, params, context):
        return dict(context.arrays)


class FromAfar(ClientHalf):
    """Scores the model after one step of its own, from a shifted start."""

    def evaluated(self, params, batch, context):
        grads, _ = self.loss_gradient(params, batch, context)
        return {n: t - context.arrays["scale"] * grads[n] for n, t in params.items()}


HALVES = [ClientHalf, LogOfSquares, BatchSpread, Distance, FedProx, Scaffold, Everything]
HALVES += [Pulled, Pushed, Near, Whole, OwnStart, Phases, Curved]
PLANS = [(half, "vmap") for half in HALVES]
PLANS += [(half, "rules") for half in HALVES if not issubclass(half, (Distance, Curved))]
WORKS = [
    LocalSGD(lr=0.1, batch_size=4),
    LocalSGD(lr=0.1, batch_size=4, epochs=2, momentum=0.9, weight_decay=0.01),
    LocalSGD(lr=0.1, batch_size=4, epochs=None, steps=5, weight_decay=0.01),
]


def client_arrays(runtime) -> Params:
    """Return own arrays of each client, `[K, ...]`."""
    rng = torch.Generator().manual_seed(3)
    arrays = {"scale": torch.rand(len(CLIENTS), generator=rng, dtype=torch.float64)}
    for name, t in runtime.initial_params().items():
        shape = (len(CLIENTS), *t.shape)
        arrays[f"control.{name}"] = 0.1 * torch.randn(shape, generator=rng, dtype=torch.float64)
    return arrays


def compare(runtime, plan: str) -> None:
    """Train all clients under `plan`, and each alone; everything must agree to 1e-10."""
    params, arrays = runtime.initial_params(), client_arrays(runtime)
    trainer, used, why = choose_trainer(runtime, plan)
    assert used == plan, why
    chunk = trainer.train(CLIENTS, 3, params, arrays)
    assert sorted(chunk.client_index) == CLIENTS.tolist()
    for row, client in enumerate(chunk.client_index.tolist()):
        own = {name: t[client] for name, t in arrays.items()}
        alone = train_client(
            runtime, client=client, server_round=3, params=params, client_arrays=own
        )
        assert set(alone.params) == set(chunk.arrays)
        assert set(alone.upload) == set(chunk.client_arrays)
        for expected, got in ((alone.params, chunk.arrays), (alone.upload, chunk.client_arrays)):
            for name, t in expected.items():
                torch.testing.assert_close(got[name][row], t, rtol=1e-10, atol=1e-10)
        assert set(alone.metrics) == set(chunk.metrics)
        for name, value in alone.metrics.items():
            assert chunk.metrics[name][row] == pytest.approx(value, rel=1e-10, abs=1e-12)
        context = runtime.context(params=params, client_arrays=own, server_round=3, steps=1)
        start = runtime.half.begin(params, context)
        moved = max(float((alone.params[n] - start[n]).abs().max()) for n in params)
        assert (moved > 1e-3) == (alone.metrics[NUM_EXAMPLES] > 0)


@pytest.mark.parametrize("work", WORKS, ids=["plain", "momentum", "steps"])
@pytest.mark.parametrize(
    ("half", "plan"),
    PLANS,
)
def test_plans_agree_with_one_client_at_a_time(half, work, plan):
    dataset = classification(dtype=torch.float64)
    compare(make_runtime(dataset, MLP(hidden=[5]), half=half(), work=work), plan)


@pytest.mark.parametrize("plan", ["rules", "vmap"])
@pytest.mark.parametrize("half", [ClientHalf, LogOfSquares, Scaffold])
def test_on_regression(half, plan):
    compare(make_runtime(regression(), MLP(hidden=[5]), half=half(), work=WORKS[1]), plan)


@pytest.mark.parametrize("plan", ["rules", "vmap"])
@pytest.mark.parametrize("half", [ClientHalf, LogOfSquares, Scaffold])
def test_on_images(half, plan):
    dataset = classification(shape=(1, 4, 4), dtype=torch.float64)
    model = CNN(channels=[2], hidden=[4])
    compare(make_runtime(dataset, model, half=half(), work=WORKS[1]), plan)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention under torch.func
@pytest.mark.parametrize("plan", ["rules", "vmap"])
@pytest.mark.parametrize("half", [ClientHalf, LogOfSquares, Scaffold])
def test_on_sequences(half, plan):
    dataset = tokens()
    model = Transformer(width=4, heads=2, layers=1, tied=True)
    runtime = make_runtime(
        dataset, lambda: model.build(dataset).double(), half=half(), work=WORKS[0]
    )
    compare(runtime, plan)


@pytest.mark.parametrize("plan", ["rules", "vmap"])
@pytest.mark.parametrize("half", [ClientHalf, FedProx])
def test_on_a_forward_with_shared_unused_and_overwritten_layers(half, plan):
    dataset = classification(dtype=torch.float64)
    compare(make_runtime(dataset, Residual, half=half(), work=WORKS[1]), plan)


def test_a_half_that_replaces_the_loss_runs_through_torch_func():
    runtime = make_runtime(classification(dtype=torch.float64), MLP(hidden=[5]), half=Distance())
    assert choose_trainer(runtime, "auto")[1:] == ("vmap", "Distance replaces the whole loss")


def test_corrections_see_trainable_parameters_only_and_frozen_ones_stay():
    dataset = classification(dtype=torch.float64)
    seen = []

    class Watch(FedProx):
        def correct(self, grads, params, context):
            seen.append((set(grads), set(params)))
            return super().correct(grads, params, context)

    for plan in ("rules", "vmap"):
        runtime = make_runtime(dataset, MLP(hidden=[5]), half=Watch(), work=WORKS[1])
        frozen = "hidden1.weight"
        runtime.model.get_parameter(frozen).requires_grad_(False)
        runtime.__post_init__()
        params, arrays = runtime.initial_params(), client_arrays(runtime)
        trainer, used, why = choose_trainer(runtime, plan)
        assert used == plan, why
        chunk = trainer.train(CLIENTS, 1, params, arrays)
        alone = train_client(
            runtime,
            client=0,
            server_round=1,
            params=params,
            client_arrays={"scale": arrays["scale"][0]},
        )
        assert all(torch.equal(row, params[frozen]) for row in chunk.arrays[frozen])
        assert torch.equal(alone.params[frozen], params[frozen])
        row = chunk.client_index.tolist().index(0)
        for name, t in alone.params.items():
            torch.testing.assert_close(chunk.arrays[name][row], t, rtol=1e-10, atol=1e-10)
        names = set(params) - {frozen}
        assert seen
        assert all(pair == (names, names) for pair in seen)


@pytest.mark.parametrize("work", WORKS, ids=["plain", "momentum", "steps"])
@pytest.mark.parametrize("plan", ["sequential", "rules", "vmap"])
def test_a_shift_is_that_correction(plan, work):
    """Written as a correction of the gradient instead, it takes the same steps."""

    class Corrected(ClientHalf):
        def correct(self, grads, params, context):
            shift = Pulled().shift(context)
            corrected = {
                n: g + 0.3 * (params[n] - context.start[n]) + shift.offset.get(n, 0)
                for n, g in grads.items()
            }
            return corrected

    dataset, results = classification(dtype=torch.float64), []
    for half in (Pulled(), Corrected(), ClientHalf()):
        runtime = make_runtime(dataset, MLP(hidden=[5]), half=half, work=work)
        params, arrays = runtime.initial_params(), client_arrays(runtime)
        if plan == "sequential":
            own = {name: t[2] for name, t in arrays.items()}
            settings = {"client": 2, "server_round": 3, "params": params, "client_arrays": own}
            results.append(train_client(runtime, **settings).params)
        else:
            trainer, _, _ = choose_trainer(runtime, plan)
            chunk = trainer.train(CLIENTS[2:3], 3, params, {n: t[2:3] for n, t in arrays.items()})
            results.append({name: rows[0].clone() for name, rows in chunk.arrays.items()})
    for name, t in results[0].items():
        torch.testing.assert_close(t, results[1][name], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(t, results[2][name], rtol=1e-3)


@pytest.mark.parametrize("plan", ["sequential", "rules", "vmap"])
def test_the_full_gradient_is_that_of_all_samples_at_once(plan):
    """Client 6 has 25 samples, in batches of 4 and a last one of 1; its loss is their mean."""

    class Mean(ClientHalf):
        full_gradient = True

        def upload(self, params, context):
            return dict(context.gradient)

    runtime = make_runtime(classification(dtype=torch.float64), MLP(hidden=[5]), half=Mean())
    params = {n: t.requires_grad_() for n, t in runtime.initial_params().items()}
    rows = torch.from_numpy(runtime.samples(6))
    outputs = runtime.apply(params, runtime.dataset.train_x[rows])
    loss = torch.nn.functional.cross_entropy(outputs, runtime.dataset.train_y[rows])
    expected = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    start = {name: t.detach() for name, t in params.items()}
    if plan == "sequential":
        settings = {"client": 6, "server_round": 3, "params": start, "client_arrays": {}}
        got = train_client(runtime, **settings).upload
    else:
        trainer, _, _ = choose_trainer(runtime, plan)
        chunk = trainer.train(CLIENTS, 3, start, {})
        row = chunk.client_index.tolist().index(6)
        got = {name: rows[row] for name, rows in chunk.client_arrays.items()}
    for name, t in expected.items():
        torch.testing.assert_close(got[name], t, rtol=1e-10, atol=1e-12)


def test_the_full_gradient_is_no_private_release():
    class Noisy(Plain):
        @property
        def plain(self):
            return False

    runtime = make_runtime(classification(), MLP(hidden=[5]), half=Whole())
    runtime.estimator = Noisy()
    with pytest.raises(ConfigError, match=r"Whole asks for the gradient of all .* privacy=none"):
        runtime.__post_init__()


@pytest.mark.parametrize(
    ("half", "plan"), [(OwnStart, "rules"), (OwnStart, "vmap"), (FromAfar, "vmap")]
)
def test_clients_score_their_own_models_under_every_plan(half, plan):
    dataset = classification(dtype=torch.float64)
    runtime = make_runtime(dataset, MLP(hidden=[5]), half=half(), holdout=0.4)
    assert runtime.half.personal
    params, arrays = runtime.initial_params(), client_arrays(runtime)
    trainer, used, why = choose_trainer(runtime, plan)
    assert used == plan, why
    chunk = evaluate_personal(trainer, CLIENTS, 3, params, arrays)
    assert chunk.client_index.tolist() == CLIENTS.tolist()
    losses = []
    for client in CLIENTS.tolist():
        alone = evaluate_client(
            runtime,
            client=client,
            server_round=3,
            params=params,
            client_arrays={name: t[client] for name, t in arrays.items()},
        )
        for name, value in alone.items():
            assert chunk.metrics[name][client] == pytest.approx(value, rel=1e-10)
        losses += [alone["loss"]] if alone[NUM_EXAMPLES] else []
        shared = evaluate_client(
            make_runtime(dataset, MLP(hidden=[5]), holdout=0.4),
            client=client,
            server_round=3,
            params=params,
            client_arrays={},
        )
        assert not alone[NUM_EXAMPLES] or abs(alone["loss"] - shared["loss"]) > 1e-4
    assert len(set(losses)) == len(losses) == sum(int(n * 0.4) > 0 for n in RAGGED)


def test_many_held_out_samples_are_scored_in_slices(monkeypatch):
    """4096 in all at a time: here of eight clients, one of which has most."""
    dataset = classification(9000, dtype=torch.float64)
    sizes = (7000, 3, 1500, 40, 7, 100, 0, 300)
    runtime = make_runtime(
        dataset, MLP(hidden=[3]), half=OwnStart(), holdout=0.5, partition=shares(dataset, sizes)
    )
    params, arrays = runtime.initial_params(), client_arrays(runtime)
    trainer, _, _ = choose_trainer(runtime, "rules")
    chunk = evaluate_personal(trainer, CLIENTS, 1, params, arrays)
    assert chunk.metrics[NUM_EXAMPLES].tolist() == [n // 2 for n in sizes]
    for client in (0, 1, 2, 7):
        alone = evaluate_client(
            runtime,
            client=client,
            server_round=1,
            params=params,
            client_arrays={name: t[client] for name, t in arrays.items()},
        )
        assert chunk.metrics["accuracy"][client] == pytest.approx(alone["accuracy"], rel=1e-12)


@pytest.mark.parametrize(
    ("half", "what"), [(Distance, "loss"), (Curved, "gradient"), (FromAfar, "evaluation")]
)
def test_what_the_layer_rules_cannot_run_is_named(half, what):
    runtime = make_runtime(classification(dtype=torch.float64), MLP(hidden=[5]), half=half())
    said = f"{half.__name__} replaces the whole {what}"
    assert choose_trainer(runtime, "auto")[1:] == ("vmap", said)


def test_a_replaced_gradient_is_refused_under_a_private_estimator():
    class Private(Plain):
        @property
        def plain(self):
            return False

    runtime = make_runtime(classification(), MLP(hidden=[5]), half=Curved())
    runtime.estimator = Private()
    with pytest.raises(ConfigError, match=r"privacy: Private cannot .* Curved .*privacy=none"):
        runtime.__post_init__()


def test_what_a_client_was_sent_is_not_written_to():
    """Normalisation layers update their statistics in place."""

    class Beside(ClientHalf):
        def gradient(self, params, batch, context):
            self.loss_gradient(dict(context.arrays), batch, context)
            return super().gradient(params, batch, context)

        def upload(self, params, context):
            return dict(context.arrays)

    def model():
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    runtime = make_runtime(classification(), model, half=Beside())
    arrays = runtime.initial_params()
    result = train_client(
        runtime,
        client=0,
        server_round=1,
        params=runtime.initial_params(),
        client_arrays=arrays,
    )
    start = runtime.initial_params()
    assert all(torch.equal(arrays[name], t) for name, t in start.items())
    assert result.upload["1.num_batches_tracked"] == 2
    assert not torch.equal(result.upload["1.running_mean"], start["1.running_mean"])
