"""Attacks in whole runs: both engines, resumption, run folder; and no bit where nobody attacks."""

import json

import numpy as np
import pytest
import torch

from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from tests.helpers import distance
from tests.strategies._toy import equal

SMALL = [
    *("partition.num_clients=10", "participation.clients_per_round=8", "model.hidden=[4]"),
    *("client=fedau", "rounds=4", "device=cpu"),
]
ATTACKS = {
    "sign_flip": ["attack=sign_flip"],
    "scaled": ["attack=scaled", "attack.factor=1e10"],
    "nan": ["attack=nan"],
    "label_flip": ["attack=label_flip"],
    "little_is_enough": ["attack=little_is_enough", "attack.z=2"],
    "inner_product": ["attack=inner_product"],
}


def simulate(*words):
    small = [word for word in SMALL if "model" not in word or "model=linear" not in words]
    return Simulation(compose("base", [*small, *words]))


def run(*words):
    simulation = simulate(*words)
    results = list(simulation.loop.run(simulation.runtime.initial_params()))
    return results[-1][0], [report for _, report in results]


@pytest.fixture(scope="module")
def honest():
    return run("attack=none")


@pytest.mark.parametrize(
    ("attack", "strategy"),
    [*((attack, "fedavg") for attack in ATTACKS), ("scaled", "fedmedian"), ("nan", "fedmedian")],
)
def test_engines_agree(attack, strategy):
    """Ours draws chunks, Flower's wants messages; sequential, and vectorised."""
    words = [*ATTACKS[attack], "precision=float64", f"strategy={strategy}", "attack.share=0.3"]
    expected, reports = run(*words, "rounds=2", "engine=in_process")
    got, others = run(*words, "rounds=2", "engine=cohort", "engine.chunk=3")
    assert distance(got, expected) < 1e-9
    assert [r.rejected for r in others] == [r.rejected for r in reports]
    assert [sorted(r.admitted) for r in others] == [sorted(r.admitted) for r in reports]


def test_over_a_wire():
    words = ["attack=little_is_enough", "attack.z=2", "rounds=2", "engine=in_process"]
    assert equal(run(*words)[0], run(*words, "engine.wire_check=true")[0])


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_share_of_nothing_changes_no_bit(attack, honest):
    expected, reports = honest
    got, others = run(*ATTACKS[attack], "attack.share=0")
    assert equal(got, expected)
    for one, other in zip(reports, others, strict=True):
        assert (one.train, one.central, one.admitted) == (
            other.train,
            other.central,
            other.admitted,
        )


@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_clients_do_the_same(attack):
    """Of one round from the same model, honest clients' replies are equal to the bit."""
    rows = []
    for words in (["attack=none"], [*ATTACKS[attack], "attack.share=0.3"]):
        simulation = simulate(*words)
        liars = simulation.attackers.clients
        loop, params = simulation.loop, simulation.runtime.initial_params()
        seen = {}

        def keep(context, replies, seen=seen):
            for chunk in replies.chunks():
                for row, client in enumerate(chunk.client_index.tolist()):
                    seen[client] = {n: t[row].clone() for n, t in chunk.arrays.items()}
            return context.params

        simulation.strategy.aggregate = keep
        loop.train(1, params)
        rows.append(seen)
    clean, attacked = rows
    assert len(clean) == 8
    assert set(attacked) == (set(clean) - set(liars.tolist()) if attack == "nan" else set(clean))
    for client, params in attacked.items():
        assert equal(params, clean[client]) == (client not in liars)


def test_participation_is_unharmed(honest):
    _, reports = honest
    _, others = run("attack=sign_flip", "attack.share=0.3")
    assert [r.asked for r in others] == [r.asked for r in reports]
    assert [r.admitted for r in others] == [r.admitted for r in reports]
    _, rejecting = run("attack=nan", "attack.share=0.3")
    liars = set(simulate("attack=nan", "attack.share=0.3").attackers.clients.tolist())
    for clean, r in zip(reports[1:], rejecting[1:], strict=True):
        assert set(r.admitted) == set(clean.admitted) - liars
        assert r.rejected["non-finite"] == len(liars & set(clean.admitted))


def test_label_flip_changes_the_targets_of_attackers_alone():
    simulation = simulate("attack=label_flip", "attack.share=0.3", "partition.holdout=0.25")
    runtime, liars = simulation.runtime, simulation.attackers.clients.tolist()
    assert len(liars) == 3
    for client in range(10):
        rows = runtime.samples(client)
        truth = runtime.dataset.train_y[torch.from_numpy(rows)]
        pool = runtime.pool([client])
        x, y = pool.take(pool.rows[0])
        assert torch.equal(x, runtime.dataset.train_x[torch.from_numpy(rows)])
        assert torch.equal(y, 9 - truth if client in liars else truth)
        held = runtime.pool([client], held_out=True)
        _, y = held.take(held.rows[0])
        kept = runtime.samples(client, held_out=True)
        assert torch.equal(y, runtime.dataset.train_y[torch.from_numpy(kept)])
    assert torch.equal(runtime.dataset.train_y, simulate().dataset.train_y)


def test_label_flip_beside_feature_skew():
    words = ["partition=noise", "partition.num_clients=10"]
    clean, flipped = (
        simulate(*words, f"attack={attack}").runtime for attack in ("none", "label_flip")
    )
    for client in range(10):
        one, other = clean.pool([client]), flipped.pool([client])
        assert torch.equal(one.take(one.rows[0])[0], other.take(other.rows[0])[0])


def test_label_flip_of_a_regression_is_refused():
    with pytest.raises(ConfigError, match=r"diabetes.*is a regression; label_flip needs classes"):
        _ = simulate("data=diabetes", "model=linear", "attack=label_flip").loop


def test_everybody_malicious_is_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"^attack\.share: 1 of 10 clients makes everybody"):
        _ = simulate("attack=sign_flip", "attack.share=1").loop


@pytest.mark.parametrize("attack", ["sign_flip", "label_flip", "little_is_enough"])
def test_resumed_runs_end_alike_and_say_who_was_malicious(attack, tmp_path):
    words = [*SMALL, *ATTACKS[attack], "strategy=geometric_median", "checkpoint.every=1"]
    models = []
    for name, stop_at in (("whole", None), ("stopped", 2)):
        config = compose("base", [*words, f"output.root={tmp_path / name}"])
        folder = RunFolder.create(config)
        rounds = []
        first = Run(
            simulation=Simulation(config),
            folder=folder,
            stop=lambda r=rounds, s=stop_at: len(r) == s,
        )
        for report in first.start():
            rounds.append(report)
        if stop_at:
            again = Run(simulation=Simulation(config), folder=RunFolder.open(folder.path))
            assert [r.server_round for r in again.resume()][-1] == 4
        models.append((folder.path / "model.safetensors").read_bytes())
        malicious = json.loads((folder.path / "partition.json").read_text())["malicious"]
        assert malicious == Simulation(config).attackers.clients.tolist()
        assert len(malicious) == 2
    assert models[0] == models[1]


def test_without_an_attack_the_run_folder_does_not_speak_of_one():
    assert "malicious" not in simulate().describe_partition()


def test_drawn_attackers_depend_on_the_seed_alone():
    words = ["attack=sign_flip", "attack.share=0.3"]
    who = simulate(*words).attackers.clients
    other = simulate(*words, "partition=dirichlet", "partition.num_clients=10", "model=linear")
    assert np.array_equal(who, other.attackers.clients)
    assert not np.array_equal(who, simulate(*words, "seed=1").attackers.clients)
