"""MOON: its gradient written out by hand, its limits, and what it remembers of each client."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.client import LocalSGD
from fedsim.client.sequential import train_client
from fedsim.engines.cohort import Cohort, choose_trainer
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.cnn import CNN
from fedsim.models.mlp import MLP
from fedsim.models.transformer import Transformer
from strategies.fedavg import FedAvg
from strategies.moon import Contrastive, Moon
from tests.helpers import classification, distance, make_runtime, run, tokens
from tests.strategies._quadratics import ENGINES, FIVE_OF_EIGHT, ragged


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_without_the_term_it_is_fedavg(engine):
    plan = getattr(engine, "plan", "")
    engine = Cohort(chunk=2) if plan == "rules" else engine
    results = [
        run(
            ragged(strategy, dtype=torch.float64),
            engine,
            strategy=strategy,
            schedule=FIVE_OF_EIGHT,
            rounds=3,
        )[0]
        for strategy in (Moon(mu=0.0), FedAvg(), Moon())
    ]
    assert distance(results[0], results[1]) < 1e-13
    assert distance(results[2], results[1]) > 1e-6


def by_hand(w, x, y, start, previous, mu, temperature):
    """Gradient of the loss of an MLP with one hidden layer of ReLU, term by term; B samples."""
    hidden = lambda p: (x @ p["hidden1.weight"].T + p["hidden1.bias"]).relu()  # noqa: E731
    z, z_g, z_p = hidden(w), hidden(start), hidden(previous)
    unit = lambda t: t / t.norm(dim=1, keepdim=True)  # noqa: E731
    cos = lambda a, b: (unit(a) * unit(b)).sum(1, keepdim=True)  # noqa: E731
    p = torch.softmax(z @ w["output.weight"].T + w["output.bias"], 1)
    d_out = (p - F.one_hot(y, p.shape[1])) / len(x)
    # d/dz cos(z, a) = (unit(a) - cos(z, a) unit(z)) / |z|
    d_cos = lambda a: (unit(a) - cos(z, a) * unit(z)) / z.norm(dim=1, keepdim=True)  # noqa: E731
    e_g, e_p = (torch.exp(cos(z, a) / temperature) for a in (z_g, z_p))
    wrong = e_p / (e_g + e_p)  # -log(1 - wrong) falls as cos(z, z_g) grows
    d_contrast = wrong / temperature * (d_cos(z_p) - d_cos(z_g)) / len(x)
    d_z = (d_out @ w["output.weight"] + mu * d_contrast) * (z > 0)
    return {
        "hidden1.weight": d_z.T @ x,
        "hidden1.bias": d_z.sum(0),
        "output.weight": d_out.T @ z,
        "output.bias": d_out.sum(0),
    }


@pytest.mark.parametrize("plan", ["sequential", "vmap"])
@pytest.mark.parametrize(("mu", "temperature"), [(1.0, 0.5), (5.0, 0.1)])
def test_two_steps_with_the_gradient_written_out(plan, mu, temperature):
    half = Contrastive(mu, temperature)
    work = LocalSGD(lr=0.3, batch_size=100, epochs=2)
    runtime = make_runtime(
        classification(dtype=torch.float64), MLP(hidden=[5]), half=half, work=work
    )
    start = runtime.initial_params()
    rng = torch.Generator().manual_seed(7)
    previous = {
        n: t + 0.3 * torch.randn(t.shape, generator=rng, dtype=t.dtype) for n, t in start.items()
    }
    rows = torch.from_numpy(runtime.samples(6))
    x, y = runtime.dataset.train_x[rows], runtime.dataset.train_y[rows]
    w = dict(start)
    for _ in range(2):
        grads = by_hand(w, x, y, start, previous, mu, temperature)
        w = {name: t - 0.3 * grads[name] for name, t in w.items()}
    if plan == "sequential":
        settings = {"client": 6, "server_round": 1, "params": start, "client_arrays": previous}
        got = train_client(runtime, **settings).params
    else:
        trainer, used, why = choose_trainer(runtime, "auto")
        assert (used, why) == ("vmap", "Contrastive replaces the whole loss")
        chunk = trainer.train(np.array([6]), 1, start, {n: t[None] for n, t in previous.items()})
        got = {name: t[0] for name, t in chunk.arrays.items()}
    for name, t in w.items():
        torch.testing.assert_close(got[name], t, rtol=1e-10, atol=1e-12)


def test_a_clients_first_round_is_fedavgs():
    """Its previous model is the global one, and the two similarities move together."""
    results = [
        run(ragged(s, dtype=torch.float64), InProcess(), strategy=s, rounds=1)[0]
        for s in (Moon(mu=5.0), FedAvg())
    ]
    assert distance(*results) < 1e-14


@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=2)])
def test_it_remembers_what_each_client_sent_last(engine):
    strategy, last = Moon(), {}
    aggregate = strategy.aggregate

    def watch(context, replies):
        chunks = replies.chunks

        def noted():
            for chunk in chunks():
                for row, client in enumerate(chunk.client_index.tolist()):
                    last[client] = {n: t[row].clone() for n, t in chunk.arrays.items()}
                yield chunk

        replies.chunks = noted
        return aggregate(context, replies)

    strategy.aggregate = watch
    run(ragged(strategy), engine, strategy=strategy, schedule=FIVE_OF_EIGHT, rounds=3)
    assert np.flatnonzero(strategy._models.seen).tolist() == sorted(last)
    assert len(last) > 5
    for client, params in last.items():
        kept = strategy._models.rows(np.array([client]))
        assert all(torch.equal(kept[name][0], t) for name, t in params.items())


class TwoHeads(nn.Module):
    """Its layers are not in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.first = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize(
    ("model", "dataset", "shape"),
    [
        (MLP(hidden=[5, 4]), classification(), (7, 4)),
        (CNN(channels=[4], hidden=[6]), classification(shape=(1, 8, 8)), (7, 6)),
        (Transformer(width=8, heads=2, layers=1, dropout=0.2), tokens(), (7, 5, 8)),
        (TwoHeads, classification(), (7, 4)),
    ],
)
def test_representations(model, dataset, shape):
    runtime = make_runtime(dataset, model)
    params = runtime.initial_params()
    x = dataset.train_x[:7]
    runtime.model.train()
    outputs, z = runtime.features(params, x, train=False)
    assert z.shape == shape
    assert runtime.model.training
    assert not any(layer._forward_pre_hooks for layer in runtime.model.modules())
    last = [m for m in runtime.model.modules() if isinstance(m, nn.Linear)]
    heads = [
        m for m in last if m.in_features == z.shape[-1] and m.out_features == outputs.shape[-1]
    ]
    assert any(torch.allclose(head(z), outputs, atol=1e-6) for head in heads)


def test_a_model_without_a_linear_layer_is_refused():
    runtime = make_runtime(classification(shape=(1, 4, 4)), lambda: nn.Flatten())
    with pytest.raises(ConfigError, match=r"Flatten has no nn.Linear; use model=mlp"):
        runtime.features({}, runtime.dataset.train_x[:2])


@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=2)])
def test_it_trains_with_dropout(engine):
    """The two fixed models are run without it; only the local one draws masks."""
    dataset, strategy = classification(shape=(1, 8, 8)), Moon()
    model = CNN(channels=[4], hidden=[6], dropout=0.3)
    results = [
        run(make_runtime(dataset, model, half=s.client_half), engine, strategy=s, rounds=2)[0]
        for s in (Moon(mu=0.0), FedAvg(), strategy)
    ]
    assert distance(results[0], results[1]) < 1e-6
    assert distance(results[2], results[1]) > 1e-4
