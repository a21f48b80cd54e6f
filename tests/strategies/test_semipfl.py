"""SemiPFL: what is frozen, what crosses the line, what is kept, and who is scored."""

import math

import numpy as np
import pytest
import torch

import strategies.coded as coded_module
from fedsim.config import compose
from fedsim.data.dataset import ServerData
from fedsim.errors import ConfigError
from fedsim.models.autoencoder import CodedClassifier
from fedsim.simulation import Simulation
from fedsim.strategy import Round
from strategies.coded import BaseFit, CodingUsers
from tests.strategies._toy import equal

WORDS = [
    *("device=cpu", "precision=float64", "rounds=3", "data.subjects=7", "data.windows=24"),
    *("data.server_subjects=3", "data.labelled=0.3", "model.hidden=[8]", "model.latent=4"),
    *("model.head_hidden=4", "strategy.width=6", "strategy.depth=1", "strategy.base_epochs=2"),
    *("strategy.mix_epochs=3", "evaluation.every=3", "evaluation.central=false"),
]


def simulation(*more):
    return Simulation(compose("semipfl_wearable", [*WORDS, *more]))


def finish(built):
    *_, (params, report) = built.loop.run(built.runtime.initial_params())
    return params, report


def model():
    torch.manual_seed(0)
    shape = {"hidden": [5], "latent": 3, "head_hidden": 4, "classes": 3, "bounded": False}
    return CodedClassifier((4, 2), **shape).double()


def make_base(**changes):
    fields = {"keep": 0.5, "tau": None, "by_class": False, "pooled": False}
    fields |= {"epochs": 3, "lr": 0.01, "batch_size": 4, "seed": 1}
    return BaseFit(**{**fields, **changes})


def server(samples=21, sources=2):
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(samples, 4, 2, generator=rng, dtype=torch.float64)
    index = torch.arange(samples)
    return ServerData(x=x, y=index % 3, source=index % sources, names=("a", "b")[:sources])


def phi_of(users):
    rng = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(users, *t.shape, generator=rng, dtype=torch.float64) / 2
        for name, t in model().state_dict().items()
        if not name.startswith("head.")
    }


# --- what users train ------------------------------------------------------------------------


@pytest.mark.parametrize("bounded", [False, True])
def test_gradients_of_many_users_by_the_layer_rules_are_those_of_torch_func(bounded):
    built, phi = model(), phi_of(3)
    if bounded:
        built.decoder.insert(len(built.decoder) - 1, torch.nn.Tanh())
    x = torch.randn(3, 6, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight_KB = torch.ones(3, 6, dtype=torch.float64)
    weight_KB[1, 4:] = weight_KB[2] = 0  # a short batch, and a user who has finished

    def mean(params, weight_B, x_B):
        losses_B = coded_module.errors(built, params, x_B)
        return (weight_B * losses_B).sum() / weight_B.sum().clamp(min=1)

    gradients = coded_module.stacked_gradients(built)
    gradients(phi, weight_KB, 2 * x)  # leaves nothing behind
    grads, losses = gradients(phi, weight_KB, x)
    expected, values = torch.vmap(torch.func.grad_and_value(mean))(phi, weight_KB, x)
    assert grads.keys() == expected.keys() and torch.allclose(losses, values, rtol=1e-13, atol=0)
    for name, rows in expected.items():
        assert torch.allclose(grads[name], rows, rtol=1e-12, atol=1e-14)
        assert not grads[name][2].any()
    assert all(rows[:2].any() for rows in expected.values())


def test_a_model_of_another_kind_has_no_layer_rules():
    class Own(CodedClassifier):
        pass

    shape = {"hidden": [5], "latent": 3, "head_hidden": 4, "classes": 3, "bounded": False}
    assert coded_module.stacked_gradients(Own((4, 2), **shape)) is None
    built = model()
    built.encoder.append(torch.nn.BatchNorm1d(3))
    assert coded_module.stacked_gradients(built) is None


# --- what the server keeps -------------------------------------------------------------------


def test_what_is_kept_by_source_by_class_and_below_a_bound():
    error_KS = torch.tensor([[5.0, 1, 4, 2, 3, 0], [0, 1, 2, 3, 4, 5]])
    source, y = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0, 1])

    def rows(**changes):
        return make_base(**changes).kept(error_KS, source, y).int().tolist()

    assert rows() == [[0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 0]]
    assert rows(by_class=True) == [[0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 1]]
    assert rows(tau=2.0) == [[0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert rows(keep=1.0) == [[1] * 6] * 2


def test_base_models_of_many_users_are_those_of_one_at_a_time():
    phi, data = phi_of(3), server()
    many = make_base()(model(), data, phi)
    for k in range(3):
        one = make_base()(model(), data, {n: t[k : k + 1] for n, t in phi.items()})
        for name, rows in many.items():
            assert rows.shape[:2] == (3, 2)
            assert torch.allclose(rows[k], one[name][0], rtol=0, atol=1e-12), name
    assert make_base(pooled=True)(model(), data, phi)["head.output.bias"].shape == (3, 1, 3)


def test_a_bound_that_nothing_passes_leaves_base_models_as_they_began():
    """As very probably in the released code's runs: then all users have the same heads."""
    heads = make_base(tau=0.0)(model(), server(), phi_of(2))
    again = make_base(tau=0.0, epochs=1)(model(), server(), phi_of(2))
    assert equal(heads, again)
    assert all(torch.equal(rows[0], rows[1]) for rows in heads.values())


def test_a_source_with_another_rule_has_another_base_model():
    """Source 1's labels are source 0's, moved on by one: its base model says so."""
    rng = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 8, generator=rng, dtype=torch.float64)
    kind, source = torch.arange(120) % 3, torch.arange(120) // 60
    x = centres[kind] + 0.1 * torch.randn(120, 8, generator=rng, dtype=torch.float64)
    data = ServerData(x=x.view(120, 4, 2), y=(kind + source) % 3, source=source, names=("a", "b"))
    phi = phi_of(1)
    heads = make_base(keep=1.0, epochs=150, lr=0.05, batch_size=60)(model(), data, phi)
    users = CodingUsers("adam", "output", 0, 0.1)
    code = coded_module.encode(model(), {n: t[0] for n, t in phi.items()}, data.x)[None]
    for m in (0, 1):
        own = {n.removeprefix("head."): t[:, m : m + 1] for n, t in heads.items()}
        nothing = (code[:, :1], torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1).bool())
        guesses = users.mixed(model(), own, nothing, code)[0].argmax(-1)
        assert (guesses == (kind + m) % 3).double().mean() > 0.95


# --- what a user mixes -----------------------------------------------------------------------


def mixing(mix, *, users=2, sources=3, known=True):
    rng = torch.Generator().manual_seed(2)
    heads = {
        n.removeprefix("head."): torch.randn(users, sources, *t.shape, generator=rng).double()
        for n, t in model().state_dict().items()
        if n.startswith("head.")
    }
    heads["scale.std"] = heads["scale.std"].abs() + 0.5
    z_l = torch.randn(users, 5, 3, generator=rng).double()
    z = torch.randn(users, 6, 3, generator=rng).double()
    y = torch.randint(3, (users, 5), generator=rng)
    labelled = (z_l, y, torch.full((users, 5), known))
    return CodingUsers("adam", mix, 40, 0.1), heads, labelled, z


@pytest.mark.parametrize("mix", ["output", "parameter"])
def test_base_models_are_frozen_while_their_mixture_is_fitted(mix):
    users, heads, labelled, z = mixing(mix)
    before = {name: rows.numpy().tobytes() for name, rows in heads.items()}
    fitted = users.mixed(model(), heads, labelled, z)
    assert {name: rows.numpy().tobytes() for name, rows in heads.items()} == before
    assert torch.allclose(fitted.exp().sum(-1), torch.ones(2, 6, dtype=torch.float64))
    uniform = CodingUsers("adam", mix, 0, 0.1).mixed(model(), heads, labelled, z)
    assert not torch.allclose(fitted, uniform)

    def nll(half):
        z_l, y, _ = labelled
        return torch.nn.functional.nll_loss(
            half.mixed(model(), heads, labelled, z_l).flatten(0, 1), y.flatten()
        )

    assert nll(users) < nll(CodingUsers("adam", mix, 0, 0.1))


@pytest.mark.parametrize("case", ["no labels", "one source"])
@pytest.mark.parametrize("mix", ["output", "parameter"])
def test_without_labels_or_with_one_source_nothing_is_fitted(mix, case, monkeypatch):
    changes = {"known": False} if case == "no labels" else {"sources": 1}
    users, heads, labelled, z = mixing(mix, **changes)

    def forbidden(*args, **kwargs):
        raise AssertionError("an optimiser was called")

    monkeypatch.setattr(coded_module, "fit", forbidden)
    log = users.mixed(model(), heads, labelled, z)
    head = {n: t[0] for n, t in heads.items()}
    if mix == "parameter":
        head = {n: t.mean(0, keepdim=True) for n, t in head.items()}
    net = model().head
    outputs = [
        torch.func.functional_call(net, {n: t[m] for n, t in head.items()}, (z[0],)).softmax(-1)
        for m in range(len(head["output.bias"]))
    ]
    assert torch.allclose(log[0].exp(), torch.stack(outputs).mean(0), rtol=0, atol=1e-12)


def test_a_user_without_labels_has_equal_weights_beside_one_who_has_some():
    users, heads, (z_l, y, known), z = mixing("output")
    known[0] = False
    log = users.mixed(model(), heads, (z_l, y, known), z)
    uniform = CodingUsers("adam", "output", 0, 0.1).mixed(model(), heads, (z_l, y, known), z)
    assert torch.allclose(log[0], uniform[0], rtol=0, atol=1e-12)
    assert not torch.allclose(log[1], uniform[1])


# --- whole runs ------------------------------------------------------------------------------


def test_only_autoencoders_cross_the_line_and_the_hypernetwork_never_does():
    built = simulation("engine=in_process")
    start = built.runtime.initial_params()
    phi = {n: t for n, t in start.items() if not n.startswith("head.")}
    seen, plain = [], built.grid.run_one

    def run_one(message):
        reply = plain(message)
        seen.append((message, reply))
        return reply

    built.grid.run_one = run_one
    finish(built)
    size = sum(t.numel() for t in phi.values())
    kinds = {message.metadata.message_type for message, _ in seen}
    assert kinds == {"train", "evaluate"} and len(seen) == 4 * 4  # 3 rounds, one evaluation
    for message, reply in seen:
        records = message.content.array_records
        assert not len(records["arrays"])
        down = {name: array.numpy() for name, array in records["client-arrays"].items()}
        if message.metadata.message_type == "train":
            up = {name: array.numpy() for name, array in reply.content["arrays"].items()}
            assert set(down) == set(up) == set(phi)
            assert sum(a.size for a in up.values()) == sum(a.size for a in down.values()) == size
            assert "client-arrays" not in reply.content
        else:
            heads = {n: t for n, t in start.items() if n.startswith("head.")}
            base = {n: a for n, a in down.items() if n.startswith("base/")}
            assert set(base) == {"base/" + n for n in heads} and set(down) - set(base) == set(phi)
            assert sum(a.size for a in base.values()) == 3 * sum(t.numel() for t in heads.values())
            assert not reply.content.array_records
    assert sum(t.numel() for t in built.strategy._hyper.params.values()) > 5 * size


def test_no_label_of_anybody_affects_the_hypernetwork():
    ends = []
    for change in (0, 1):
        built = simulation()
        data, mine = built.dataset, built.dataset.server
        data.train_y[:] = (data.train_y + change) % 4
        mine.y[:] = (mine.y + change) % 4
        _, report = finish(built)
        ends.append((built.strategy._hyper.params, report.per_client["loss"]))
    assert equal(ends[0][0], ends[1][0])
    assert ends[0][1] != ends[1][1]


def test_users_with_no_labels_are_scored_like_equal_weights():
    without = finish(simulation("data.labelled=0"))[1].per_client
    equal_weights = finish(simulation("data.labelled=0", "strategy.mix_epochs=0"))[1].per_client
    assert without == equal_weights
    assert finish(simulation("data.labelled=1"))[1].per_client != without


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
def test_every_user_is_scored_also_those_who_never_took_part(engine):
    """The released code's mean is over the users whose F1 is high; ours is of all of them."""
    built = simulation("participation=uniform", "participation.clients_per_round=1",
                       f"engine={engine}", "rounds=1")  # fmt: skip
    _, report = finish(built)
    columns = report.per_client
    assert columns["client-index"] == [0, 1, 2, 3] and len(report.admitted) == 1
    assert {"accuracy", "weighted-f1", "loss"} <= set(columns)
    held = np.array([len(built.runtime.samples(k, held_out=True)) for k in range(4)])
    assert columns["num-examples"] == held.tolist()
    assert all(0 <= value <= 1 for value in columns["weighted-f1"])
    mean = float(np.average(columns["weighted-f1"], weights=held))
    assert report.clients["weighted-f1"] == pytest.approx(mean)


def test_data_without_a_server_part_and_other_models_are_refused():
    few = ["strategy=semipfl", "device=cpu", "partition.num_clients=4", "evaluation.central=false"]
    few += ["participation.clients_per_round=2"]
    with pytest.raises(ConfigError, match="SemiPFL's server learns from labelled data of its own"):
        finish(Simulation(compose("base", [*few, "model=autoencoder"])))
    with pytest.raises(ConfigError, match="use model=autoencoder"):
        finish(Simulation(compose("base", [*few, "data=wearable"])))


def test_a_round_with_one_user_is_the_papers_step():
    """The mean over the users of a round is that user's own: J^T (phi - phi~), one Adam step."""
    built = simulation("participation=uniform", "participation.clients_per_round=1", "rounds=1")
    strategy, start = built.strategy, built.runtime.initial_params()
    context = Round(server_round=1, num_clients=4, asked=np.array([2]), params=start)
    sent = {n: t.clone() for n, t in strategy.client_payload(context).items()}
    before = {n: t.clone() for n, t in strategy._hyper.params.items()}
    vectors = {n: 0.1 * t for n, t in sent.items()}
    grads = strategy._hyper.gradient(np.array([2]), vectors)
    returned = {n: sent[n] - vectors[n] for n in sent}
    strategy._hyper.step(np.array([2]), sent, returned, lr=1e-3, clip_norm=math.inf)
    for name, old in before.items():  # the first step of Adam is lr times the sign
        step, grad = old - strategy._hyper.params[name], grads[name]
        big = grad.abs() > 1e-4
        assert torch.allclose(step[big], 1e-3 * grad[big].sign(), rtol=1e-3, atol=0)
