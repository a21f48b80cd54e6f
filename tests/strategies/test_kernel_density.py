"""Similarity queries over clients: the central release to the bit, noise, ledger, the release."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsim import seeds
from fedsim.client.answers import answered
from fedsim.config import compose
from fedsim.errors import ConfigError
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.protection.ledger import LEDGER
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from privacy.normal import keyed
from privacy.similarity.classes import labelled
from privacy.similarity.moments import EvenPower, InnerProduct
from privacy.similarity.noise import noise_for
from privacy.similarity.projection import Projected
from privacy.similarity.random_features import RandomFeatures
from privacy.similarity.released import NOISE, Released
from privacy.similarity.tree import Tree
from strategies.kernel_density import KernelDensity
from tests.helpers import RAGGED, shares

WORDS = [
    *("data=digits", "model=none", "strategy=kernel_density", "privacy=similarity_noise"),
    *("rounds=1", "participation=full", f"partition.num_clients={len(RAGGED)}", "device=cpu"),
    *("strategy.bandwidth=3", "strategy.features=64", "seed=5"),
]
CLASSES = ["strategy.similarity=inner_product", "strategy.radius=4", "strategy.classify=true"]


def build(*words: str) -> Simulation:
    """A simulation whose clients hold 0 to 25 samples, 62 in all."""
    simulation = Simulation(compose("base", [*WORDS, *words]))
    simulation.partition = shares(simulation.dataset, RAGGED)
    return simulation


def release(simulation: Simulation) -> Released:
    simulation.check()
    *_, (params, report) = simulation.loop.run(simulation.runtime.initial_params())
    assert not report.rejected
    return Released.of_run(params, simulation.protection.planned().to_json())


def held(simulation: Simulation) -> torch.Tensor:
    """All clients' records, with their classes where they count."""
    rows = torch.cat([torch.from_numpy(simulation.partition.indices(k)) for k in range(8)])
    x = simulation.dataset.train_x[rows].flatten(1)
    classify = simulation.strategy.classify  # type: ignore[attr-defined]
    return labelled(x, simulation.dataset.train_y[rows]) if classify else x


@pytest.mark.parametrize(
    "more",
    [[], CLASSES, ["strategy.similarity=l1", "privacy.noise=laplace"]],
    ids=["features", "classes", "tree"],
)
def test_the_federated_release_is_the_central_one_to_the_bit(more: list[str]) -> None:
    central = build(*more)
    central.check()
    summary = central.strategy.sketch  # type: ignore[attr-defined]
    law = "laplace" if "privacy.noise=laplace" in more else "gaussian"
    delta = 1e-5 if law == "gaussian" else 0.0
    noise = noise_for(summary, law, epsilon=1.0, delta=delta, relation="replace_one")  # type: ignore[arg-type]
    drawn = noise.draw(summary, keyed(5, 1, seeds.SERVER, "similarity"))
    expected = summary.sums(held(central)) + drawn
    for engine in ("cohort", "in_process", "in_process engine.wire_check=true"):
        found = release(build(*more, *f"engine={engine}".split()))
        assert torch.equal(found.sums, expected)
        assert found.count == sum(RAGGED)
        assert found.noise == noise
        assert found.statement["epsilon"] == pytest.approx(1.0, rel=1e-4)
        assert found.statement["epsilon"] <= 1.0
        assert found.statement["delta"] == delta
    y = central.dataset.test_x[:20].flatten(1)
    both = [Released(**{**vars(found), "sums": sums}) for sums in (found.sums, expected)]
    assert torch.equal(both[0].ask(y), both[1].ask(y))


def test_other_noise_for_another_seed_and_none_without_privacy() -> None:
    sums = [release(build(*words)).sums for words in ([], ["seed=6"])]
    assert not torch.equal(*sums)
    plain = build()
    plain.__dict__["privacy_part"] = Simulation(
        compose("base", [w for w in WORDS if "privacy" not in w])
    ).privacy_part
    found = release(plain)
    assert found.noise is None
    assert torch.equal(found.sums, plain.strategy.sketch.sums(held(plain)))  # type: ignore[attr-defined]
    assert found.statement["mechanism"] == "none"


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_clients_add_the_noise(trust: str) -> None:
    """In the sum: all shares, of which as many as are asked for would do; or all of theirs."""
    words = [f"privacy.trust={trust}", "strategy.features=4096", "strategy.pairs=true"]
    if trust == "distributed":
        words.append("privacy.min_survivors=4")
    simulation = build(*words)
    found = release(simulation)
    summary = simulation.strategy.sketch  # type: ignore[attr-defined]
    # Seven of the eight hold something.
    one = noise_for(summary, "gaussian", epsilon=1.0, delta=1e-5, relation="replace_one").scale
    scale = one * math.sqrt(7 / (4 if trust == "distributed" else 1))
    assert found.deviation == pytest.approx(scale)
    noise = (found.sums - summary.sums(held(simulation))).double() * 2.0**-30
    assert float(noise.std()) == pytest.approx(scale, rel=0.05)
    words_of_trust = {"distributed": "at least 4 clients are honest", "local": "none but each"}
    assert words_of_trust[trust] in found.statement["trust"]


def test_too_few_shares_release_nothing() -> None:
    simulation = build("privacy.trust=distributed")  # all eight, one of which holds nothing
    *_, (params, report) = simulation.loop.run(simulation.runtime.initial_params())
    assert len(report.admitted) == 7
    assert not params["sums"].any()
    assert not report.central
    with pytest.raises(ConfigError, match="0 records"):
        Released.of_run(params, {})


def test_the_ledger_is_on_the_disk_before_anybody_is_asked(tmp_path: Path) -> None:
    config = compose("base", [*WORDS, *CLASSES, f"output.root={tmp_path}"])
    run = Run(simulation=Simulation(config), folder=RunFolder.create(config))
    send, seen = run.simulation.grid.send_and_receive, []

    def spy(messages, **rest):
        seen.append((run.folder.path / LEDGER).read_text())
        return send(messages, **rest)

    run.simulation.grid.send_and_receive = spy  # type: ignore[method-assign]
    reports = list(run.start())
    (line,) = seen[0].splitlines()
    (event,) = json.loads(line)["events"]
    assert event["mechanism"]["kind"] == "Gaussian"
    assert reports[-1].epsilon == pytest.approx(1.0, rel=1e-3)

    # Stopped after round 0 and resumed: the same bits.
    stops = iter([True])
    cut = Run(simulation=Simulation(config), folder=RunFolder.create(config),
              stop=lambda: next(stops))  # fmt: skip
    list(cut.start())
    opened = RunFolder.open(cut.folder.path)
    rest = Run(simulation=Simulation(opened.config()), folder=opened)
    list(rest.resume())
    for file in ("model.safetensors", "findings.json", LEDGER):
        ends = [r.folder.path / file for r in (run, rest)]
        assert sha256(ends[0].read_bytes()) == sha256(ends[1].read_bytes()), file

    # And the folder is a released object.
    found = Released.from_run(run.folder.path)
    assert "differential privacy per example" in found.statement["statement"]
    assert float((found.labels(run.simulation.dataset.test_x.flatten(1))
                  == run.simulation.dataset.test_y).double().mean()) == pytest.approx(
        reports[-1].central["accuracy"])  # fmt: skip
    assert "own class" in (run.folder.path / "findings.json").read_text()


def test_an_answer_is_given_once() -> None:
    """Local noise is the system's: drawn again it would be other noise, and average away."""
    simulation = build("engine=in_process", "privacy.trust=local", "privacy.noise_source=system")
    grid, sent = simulation.grid, []
    send = grid.send_and_receive

    def kept(messages, **rest):
        sent.append(next(iter(messages)))
        return send(messages, **rest)

    grid.send_and_receive = kept  # type: ignore[method-assign]
    list(simulation.loop.run(simulation.runtime.initial_params()))

    def ask(context):
        content = answered(lambda _: simulation.runtime, sent[0], context, 0, zero_copy=True)
        return content.array_records["client-arrays"]["sums"].numpy().tobytes()

    context = grid.context(0)  # type: ignore[attr-defined]
    first = ask(context)
    assert ask(context) == first
    context.state.clear()
    assert ask(context) != first


# --- the released object -------------------------------------------------------------------------


def test_a_release_survives_the_disk_and_holds_no_records(tmp_path: Path) -> None:
    simulation = build()
    found = release(simulation)
    found.save(tmp_path / "out")
    again = Released.load(tmp_path / "out")
    y = simulation.dataset.test_x[:9].flatten(1)
    for mine, theirs in zip(found.query(y), again.query(y), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.shape == (9,)
    assert again.summary == found.summary
    assert dict(again.statement) == dict(found.statement)
    assert set(load_file(tmp_path / "out" / "sums.safetensors")) == {"sums"}
    public = json.loads((tmp_path / "out" / "release.json").read_text())
    assert set(public) == {"format", "summary", "count", "noise", "statement"}
    with pytest.raises(ConfigError, match="knows no classes"):
        found.labels(y)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p, out: p.pop("noise"), "no release can be read"),
        (lambda p, out: p.update(format=2), "format 2"),
        (lambda p, out: p.update(count=0), "0 records"),
        (lambda p, out: p.update(count="62"), "whole number"),
        (lambda p, out: p["summary"].update(count=32), "has 32 numbers"),
        (lambda p, out: p["summary"].update(kind="Forest"), "is no summary"),
        (lambda p, out: p.update(noise={"law": "cauchy", "scale": 1.0}), "law"),
        (lambda p, out: save_file({"sums": torch.zeros(64)}, out / "sums.safetensors"), "float32"),
        (lambda p, out: (out / "sums.safetensors").write_bytes(b"0"), "no release can be read"),
    ],
)
def test_a_damaged_release_is_refused(change, match: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    release(build()).save(out)
    public = json.loads((out / "release.json").read_text())
    change(public, out)
    (out / "release.json").write_text(json.dumps(public))
    with pytest.raises(ConfigError, match=match):
        Released.load(out)


def test_other_folders_and_releases_are_refused(tmp_path: Path) -> None:
    for read in (Released.load, Released.from_run):
        with pytest.raises(ConfigError, match=r"can be read|not the folder of a finished"):
            read(tmp_path)
    with pytest.raises(ConfigError, match="no release of strategy=kernel_density"):
        Released.of_run({NOISE: torch.zeros(2)}, {})


# --- the plan ------------------------------------------------------------------------------------


def test_every_similarity_has_its_summary() -> None:
    kinds = {
        ("l1", ""): Tree, ("lp", ""): Tree, ("inner_product", ""): InnerProduct,
        ("l2", ""): Projected, ("lp", "4"): EvenPower, ("gaussian", ""): RandomFeatures,
    }  # fmt: skip
    for (similarity, power), kind in kinds.items():
        strategy = KernelDensity(similarity=similarity, power=int(power or 3))  # type: ignore[arg-type]
        assert isinstance(strategy.plan(6, 1000), kind)
    front = KernelDensity(project=8).plan(64, 1000)
    assert isinstance(front, Projected)
    assert front.inner.dimension == 8
    kept = KernelDensity(distortion=0.2).plan(64, 1000)
    assert isinstance(kept, Projected)
    assert kept.inner.dimension == 50  # 2/η²
    # More budget, more features; a looser target, fewer.
    counts = [KernelDensity(plan_noise="laplace", plan_epsilon=e).plan(6, 10_000).size
              for e in (0.5, 1.0, 2.0)]  # fmt: skip
    assert counts[0] < counts[1] < counts[2]
    assert KernelDensity(plan_noise="laplace", target=0.05).plan(6, 10_000).size < counts[1]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["privacy.noise=laplace", "privacy.trust=distributed"], "privacy.noise=gaussian"),
        (["privacy.trust=distributed", "privacy.min_survivors=9"], "there are 8 clients"),
        (["strategy.method=gaussian_process"], "answers at fixed points only"),
        (["strategy.method=lsq", "strategy.similarity=l1"], "is for kernels"),
        (["strategy.method=lsq", "strategy.similarity=laplace"], "lsq is for similarity=gaussian"),
        (["strategy.method=lsq"], "use random features"),
        (["strategy.similarity=laplace", "strategy.project=4"], "keep L2 distances"),
        (["data=diabetes", "strategy.classify=true"], "has no classes"),
        (["data=zipf"], "similarity is of vectors"),
        (["strategy.rule=mean", "strategy.classify=true"], "use rule=similarity"),
        (["strategy.target=1e-6"], "is out of reach"),
        (["privacy=local_dp", "privacy.epsilon=1"], "protects what comes of training"),
        (["rounds=2"], "set rounds=1"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], match: str) -> None:
    if "strategy.target=1e-6" in words:
        words = ["strategy.features=null", *words]
    given = [
        w for w in WORDS if w != "strategy.features=64" or "strategy.features=null" not in words
    ]
    with pytest.raises(ConfigError, match=match):
        Simulation(compose("base", [*given, *words])).check()


def test_records_held_twice_are_refused() -> None:
    simulation = build()
    order = torch.cat([torch.from_numpy(simulation.partition.indices(k)) for k in range(8)]).numpy()
    order[1] = order[0]
    simulation.partition.order = order  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="some records are held by several clients"):
        simulation.check()


def test_only_this_strategy_gets_this_noise() -> None:
    with pytest.raises(ConfigError, match="use strategy=kernel_density"):
        Simulation(compose("quickstart", ["privacy=similarity_noise"])).check()
