"""SemiPFL's neighbours: what they are at their limits, what they send, what they refuse."""

import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.simulation import Simulation
from strategies.semifl import Augmentation
from tests.strategies._toy import equal

WORDS = [
    *("device=cpu", "precision=float64", "rounds=2", "data.subjects=7", "data.windows=24"),
    *("data.server_subjects=3", "data.labelled=0.5", "model.hidden=[8]", "model.latent=4"),
    *("model.head_hidden=4", "evaluation.every=2", "evaluation.central=false", "client.epochs=2"),
]


def run(strategy, *more):
    built = Simulation(compose("semipfl_wearable", [*WORDS, f"strategy={strategy}", *more]))
    *_, (params, report) = built.loop.run(built.runtime.initial_params())
    return built, params, report


def apart(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# --- local training ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["client.momentum=0.9", "client.weight_decay=0.01"]])
def test_local_training_is_fedper_with_everything_personal(words):
    """The engine's own steps on the same batches, and scores by the same names."""
    _, _, ours = run("local_only", "client.lr=0.1", *words)
    _, _, theirs = run("fedper", "strategy.head_layers=6", "client.lr=0.1", *words)
    for name in ("loss", "accuracy", "weighted-f1", "num-examples"):
        assert ours.per_client[name] == pytest.approx(theirs.per_client[name], rel=1e-9)


def test_a_classifier_is_sent_without_its_decoder():
    for name in ("local_only", "pfedhn"):
        built, params, _ = run(name)
        sent = set(built.strategy.expected_arrays)
        assert sent == {n for n in built.runtime.trainable if not n.startswith("decoder.")}
        start = built.runtime.initial_params()
        assert all(equal({n: params[n]}, {n: start[n]}) for n in params if n not in sent)


# --- pFedHN -----------------------------------------------------------------------------------


def test_pfedhn_follows_the_gradient_of_its_clients_losses():
    """One full-batch step of SGD at each client: what is sent up is lr times the gradient, and the
    hypernetwork's gradient that of the mean loss, end to end."""
    words = ["client.epochs=null", "client.steps=1", "client.batch_size=500", "client.lr=0.1"]
    built, _, _ = run("pfedhn", *words, "rounds=1", "evaluation.every=1")
    hyper, runtime = built.strategy._hyper, built.runtime
    who = np.arange(4)
    sent = {n: t.clone() for n, t in hyper(who).items()}
    chunk = built.grid.trainer.train(who, 1, {}, sent)
    vectors = {n: (sent[n] - chunk.arrays[n]) / 0.1 for n in sent}
    grads = hyper.gradient(who, vectors)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in hyper.params.items()}
    total = torch.zeros((), dtype=torch.float64)
    models = hyper._forward(leaves, who)
    for k in who.tolist():
        x, y = runtime.pool([k]).take(runtime.samples(k))
        outputs = runtime.apply({n: t[k] for n, t in models.items()}, x)
        total = total + torch.nn.functional.cross_entropy(outputs, y)
    true = torch.autograd.grad(total, list(leaves.values()))
    for name, value in zip(leaves, true, strict=True):
        assert torch.allclose(grads[name], value, rtol=0, atol=1e-12), name


def test_who_knows_no_label_is_not_asked_by_those_who_need_them():
    for name in ("local_only", "pfedhn"):
        _, _, report = run(name, "data.labelled=0")
        assert report.admitted == [] and len(report.per_client["weighted-f1"]) == 4


# --- FedAvg and FedProx of an autoencoder -----------------------------------------------------


def test_a_long_pull_keeps_the_autoencoder_where_it_was():
    sgd = ["strategy.optimiser=sgd", "client.lr=0.01", "client.epochs=20"]
    built, free, _ = run("fedavg_autoencoder", *sgd)
    _, same, _ = run("fedprox_autoencoder", "strategy.mu=0", *sgd)
    _, held, _ = run("fedprox_autoencoder", "strategy.mu=90", *sgd)
    start = built.runtime.initial_params()
    assert equal(free, same)
    assert 0 < apart(held, start) < 0.3 * apart(free, start)


def test_labels_move_no_shared_tensor_and_fine_tuning_uses_them():
    _, few, some = run("fedavg_autoencoder", "data.labelled=0.1")
    _, many, more = run("fedavg_autoencoder", "data.labelled=1")
    assert equal(few, many) and some.per_client["loss"] != more.per_client["loss"]
    _, _, none = run("fedavg_autoencoder", "strategy.tune_epochs=0", "data.labelled=1")
    _, _, without = run("fedavg_autoencoder", "data.labelled=0")
    assert none.per_client == without.per_client


# --- SemiFL -----------------------------------------------------------------------------------


def test_at_a_threshold_of_one_the_server_learns_alone():
    _, alone, _ = run("semifl", "strategy.threshold=1", "data.labelled=0")
    _, other, _ = run("semifl", "strategy.threshold=1", "data.labelled=0", "client.lr=0.5")
    _, guessed, _ = run("semifl", "strategy.threshold=0.01", "data.labelled=0")
    assert equal(alone, other) and not equal(alone, guessed)


def test_pseudo_labels_below_the_threshold_teach_nothing():
    built, _, _ = run("semifl", "data.labelled=0", "rounds=1", "evaluation.every=1")
    start = built.runtime.initial_params()
    start["head.output.weight"].mul_(0)  # sure of nothing but what the bias says
    bias = torch.tensor([0.0, 3.0, 0, 0], dtype=torch.float64)
    start["head.output.bias"] = bias
    sure = float(bias.softmax(0).max())
    for threshold, learns in ((sure + 1e-6, False), (sure - 1e-6, True)):
        words = [f"strategy.threshold={threshold}", "data.labelled=0", "rounds=1"]
        half = run("semifl", *words, "evaluation.every=1")[0].runtime
        chunk = type(built.grid.trainer)(half, built.grid.trainer.make_step, None).train(
            np.arange(4), 1, start, {}
        )
        moved = any(not torch.equal(chunk.arrays[n][k], start[n]) for n in start for k in range(4))
        assert moved == learns
        if learns:  # towards the class that it was sure of
            assert (chunk.arrays["head.output.bias"][:, 1] > 3).all()


def test_who_has_learnt_nothing_does_not_hold_the_others_back():
    """The mean is over those who moved: SemiFL's code drops users without a confident window."""
    from fedsim.records import NUM_EXAMPLES, Chunk
    from fedsim.strategy import Round
    from strategies.semifl import SemiFL
    from tests.strategies._toy import Stacked

    x = {"x": torch.zeros(2)}
    rows = torch.tensor([[1.0, 2], [0, 0], [3, 4]])
    replies = Stacked(
        Chunk(client_index=np.arange(3), arrays={"x": rows}, metrics={NUM_EXAMPLES: np.ones(3)})
    )
    context = Round(server_round=1, num_clients=3, asked=np.arange(3), params=x)
    assert SemiFL().aggregate(context, replies)["x"].tolist() == [2, 3]


def test_augmented_windows():
    make = Augmentation(weak=0.0, strong=0.0, scale=0.0, blank=0.3)
    x = torch.randn(5, 10, 3, generator=torch.Generator().manual_seed(0)) + 9
    weak, strong = make(x, torch.Generator().manual_seed(1))
    assert torch.equal(weak, x)
    blank = (strong == 0).all(-1)
    assert blank.sum(1).tolist() == [3] * 5 and torch.equal(strong[~blank], x[~blank])
    first = blank.int().argmax(1)
    assert all(blank[k, f : f + 3].all() for k, f in enumerate(first))  # one stretch
    assert len(set(first.tolist())) > 1
    loud = Augmentation(weak=0.1, strong=1.0, scale=0.5, blank=0.0)
    for shape in ((400, 10, 3), (400, 30)):  # windows, features
        x = torch.ones(shape, dtype=torch.float64)
        weak, strong = loud(x, torch.Generator().manual_seed(1))
        assert float((weak - x).std()) == pytest.approx(0.1, rel=0.1)
        assert float((strong - x).std()) == pytest.approx((1 + 0.25) ** 0.5, rel=0.1)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["semipfl", "fedavg_autoencoder", "pfedhn", "local_only", "semifl"]
)
def test_momentum_and_weight_decay_are_refused_where_steps_are_adams(name):
    with pytest.raises(ConfigError, match=r"client\.momentum: without effect.*optimiser=sgd"):
        run(name, "client.momentum=0.9", "strategy.optimiser=adam")
    both = ["client.momentum=0.9", "client.weight_decay=0.1", "strategy.optimiser=adam"]
    with pytest.raises(ConfigError, match=r"set client\.momentum=0 and client\.weight_decay=0, or"):
        run(name, *both)
    sgd = ["strategy.optimiser=sgd", "client.lr=0.01"]
    ends = [run(name, *sgd, *words)[1] for words in ([], both[:2])]
    assert not equal(*ends)


@pytest.mark.parametrize("name", ["pfedhn", "local_only", "semifl"])
def test_models_whose_layers_change_as_they_are_used_are_refused(name):
    words = [f"strategy={name}", "device=cpu", "partition.num_clients=3", "rounds=1"]
    more = ["participation.clients_per_round=2", "model=cnn", "data.image=true"]
    built = Simulation(compose("quickstart", [*words, *more, "model.dropout=0.2"]))
    with pytest.raises(ConfigError, match="use a model without dropout"):
        list(built.loop.run(built.runtime.initial_params()))


def test_the_released_code_is_refused_with_another_model():
    with pytest.raises(ConfigError, match=r"model\.output=linear.*set model\.output=tanh"):
        run("semipfl_released_code")
    run("semipfl_released_code", "model.output=tanh")
