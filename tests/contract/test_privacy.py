"""What holds of every privacy mechanism that `scenarios/privacy` offers, in whole runs."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from fedsim.cli import app
from fedsim.config import compose
from fedsim.errors import BudgetError, ConfigError, ResumeError
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.plan import plan
from fedsim.progress import describe
from fedsim.protection.ledger import LEDGER, Ledger
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke
from tests.helpers import RAGGED, distance, shares

FOLDER = Path(__file__).parents[2] / "scenarios" / "privacy"
ONE_QUESTION = {"similarity_noise"}
"""Its one round is too few for these tests: tests/strategies/test_kernel_density.py has its own."""

NAMES = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"none"} - ONE_QUESTION)

WORDS = [
    *("rounds=3", f"partition.num_clients={len(RAGGED)}", "seed=5", "device=cpu"),
    *("model=linear", "client.epochs=1", "client.batch_size=4", "client.lr=0.05"),
    *("precision=float64", "checkpoint.every=1", "evaluation.central=false"),
]
BERNOULLI = ["participation=bernoulli", "participation.rate=0.6"]
UNIFORM = ["participation=uniform", "participation.clients_per_round=5"]
FULL = ["participation=full"]
NOISE = ["privacy.epsilon=null", "privacy.noise_multiplier=1.0"]
BAGS = ["data=bags", "data.size=2", "data.clip=2", "strategy=aggregate"]
ITEMS = ["data=zipf", "data.sizes=[40,62]", "data.items=20", "data.bits=8", "model=none",
         "participation=full"]  # fmt: skip
ASK = {"local_reports", "sample_threshold"}
"""What these protect is asked; no model is trained. How many users a client has is public."""
WHOLE = {"diff2", *ASK}
"""Their clients take no steps, so that there are no layer rules to run on."""
ONCE = {"label_dp", "aggregate_labels"}
"""What these protect is released once, before the first round."""
DP_SGD = [*NOISE, "privacy.sample_rate=0.5", *BERNOULLI]

PLAIN = {
    "dp_sgd": DP_SGD,
    "user_dp": [*NOISE, *BERNOULLI],
    "local_dp": [*NOISE, *BERNOULLI],
    "label_dp": BERNOULLI,
    "dp_ftrl": [*NOISE, *FULL],
    "distributed_dp": [*NOISE, *FULL],
    "diff2": [*NOISE, *FULL, "strategy=diff2", "strategy.restart=2"],
    "aggregate_labels": [*BAGS, *BERNOULLI],
    "local_reports": [*ITEMS, "strategy=pem", "strategy.levels=3"],
    "sample_threshold": [
        *[*ITEMS, "strategy=triehh", "strategy.levels=3"],
        *["privacy.epsilon=12", "privacy.delta=0.3"],
    ],
}
"""One case of each; a mechanism that is not here is tried with the values of its file."""

BASIC = {name: (name, PLAIN.get(name, BERNOULLI)) for name in NAMES}
ADAPTIVE = {
    "dp_sgd, adaptive": (
        "dp_sgd",
        [*DP_SGD, "privacy.clipping=adaptive", "privacy.count_noise=2", "privacy.clip_norm=0.3"],
    ),
    "user_dp, adaptive": (
        "user_dp",
        [*NOISE, *BERNOULLI, "privacy.clipping=adaptive", "privacy.count_noise=2"],
    ),
}
STEPS = {
    f"diff2, {trust} steps": (
        "diff2",
        [*NOISE, *FULL, "strategy=bvr_l_sgd", "strategy.restart=2", f"privacy.trust={trust}"],
    )
    for trust in ("central", "local")
}
CASES = {
    **BASIC,
    **ADAPTIVE,
    "dp_sgd, replace one": ("dp_sgd", [*DP_SGD, "privacy.relation=replace_one"]),
    "dp_sgd, per layer": ("dp_sgd", [*DP_SGD, "privacy.clipping=per_layer"]),
    "dp_sgd, automatic": ("dp_sgd", [*DP_SGD, "privacy.clipping=automatic"]),
    "dp_sgd, momentum": ("dp_sgd", [*DP_SGD, "client.momentum=0.9", "client.weight_decay=0.1"]),
    "dp_sgd, decay": ("dp_sgd", [*DP_SGD, "client.weight_decay=0.1"]),
    "dp_sgd, steps": ("dp_sgd", [*DP_SGD, "client.epochs=null", "client.steps=3"]),
    "dp_sgd, fedprox": ("dp_sgd", [*DP_SGD, "strategy=fedprox", "strategy.mu=0.5"]),
    "dp_sgd, scaffold": ("dp_sgd", [*DP_SGD, "strategy=scaffold", *FULL]),
    "dp_sgd, fedld": ("dp_sgd", [*DP_SGD, "strategy=fedld"]),
    "dp_sgd, moon": ("dp_sgd", [*DP_SGD, "strategy=moon", "model=mlp", "model.hidden=[4]"]),
    "user_dp, uniform": ("user_dp", [*NOISE, *UNIFORM]),
    "user_dp, full": ("user_dp", [*NOISE, *FULL]),
    "user_dp, weights": ("user_dp", [*NOISE, *BERNOULLI, "privacy.weight_cap=10"]),
    "user_dp, adaptive uniform": ("user_dp", [*ADAPTIVE["user_dp, adaptive"][1], *UNIFORM]),
    "user_dp, adaptive full": ("user_dp", [*ADAPTIVE["user_dp, adaptive"][1], *FULL]),
    "user_dp, flower's adam": ("user_dp", [*NOISE, *BERNOULLI, "strategy=fedadam"]),
    "user_dp, fedprox": ("user_dp", [*NOISE, *BERNOULLI, "strategy=fedprox", "strategy.mu=0.5"]),
    "user_dp, momentum": ("user_dp", [*NOISE, *BERNOULLI, "client.momentum=0.9"]),
    "user_dp, scaled": ("user_dp", [*NOISE, *FULL, "attack=scaled", "attack.share=0.3"]),
    "user_dp, nan": ("user_dp", [*NOISE, *FULL, "attack=nan", "attack.share=0.3"]),
    "local_dp, krum": ("local_dp", [*NOISE, *FULL, "strategy=krum", "strategy.num_malicious=2"]),
    "local_dp, weights": ("local_dp", [*NOISE, *BERNOULLI, "privacy.weight_cap=10"]),
    "label_dp, scaffold": ("label_dp", [*FULL, "strategy=scaffold"]),
    "aggregate_labels, classes": (
        "aggregate_labels",
        [
            *[*BAGS[:2], "data.source.name=digits", "data.rest=short", BAGS[3]],
            *["strategy.loss=easyllp", "privacy.delta=1e-6", *FULL],
        ],
    ),
    "label_dp, flipped": ("label_dp", [*BERNOULLI, "attack=label_flip"]),
    "diff2, distributed": ("diff2", [*PLAIN["diff2"], "privacy.trust=distributed"]),
    "diff2, local": ("diff2", [*PLAIN["diff2"], "privacy.trust=local"]),
    **STEPS,
    "diff2, add or remove": (
        "diff2",
        [*PLAIN["diff2"], "privacy.relation=add_remove", "privacy.examples=60"],
    ),
    "dp_sgd, flipped": ("dp_sgd", [*DP_SGD, "attack=label_flip"]),
}

basic = pytest.mark.parametrize("case", BASIC.values(), ids=BASIC)
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
stateful = pytest.mark.parametrize(
    "case", {**BASIC, **ADAPTIVE, **STEPS}.values(), ids={**BASIC, **ADAPTIVE, **STEPS}
)
FRESH = [name for name in BASIC if name in ("dp_sgd", "user_dp", "local_dp")]
"""Those that can draw fresh noise, and that can be given both their noise and a budget."""

charged = pytest.mark.parametrize("case", [BASIC[name] for name in FRESH], ids=FRESH)


@pytest.fixture(autouse=True)
def _cheap_folders(monkeypatch):
    """Asking git, and drawing a report, takes longer than these runs do."""

    def write_report(folder):
        (folder / "report.html").write_text("a report")
        return folder / "report.html"

    monkeypatch.setattr("fedsim.lifecycle.environment", lambda *args: {})
    monkeypatch.setattr("fedsim.report.html.write_report", write_report)


def build(case, root, *words, smoke=None):
    """A simulation whose clients hold 0 to 25 samples."""
    name, own = case
    given = [*own, *words]
    last = max((i for i, word in enumerate(given) if word.startswith("participation=")), default=0)
    given = [w for i, w in enumerate(given) if i >= last or not w.startswith("participation")]
    config = compose("quickstart", [*WORDS, f"privacy={name}", f"output.root={root}", *given])
    simulation = Simulation(config, smoke)
    simulation.partition = shares(simulation.dataset, RAGGED)
    return simulation


def start(case, root, *words, **values):
    simulation = build(case, root, *words)
    return Run(simulation=simulation, folder=RunFolder.create(simulation.config), **values)


def again(run):
    """The same run, opened by another process."""
    folder = RunFolder.open(run.folder.path)
    simulation = Simulation(folder.config())
    simulation.partition = shares(simulation.dataset, RAGGED)
    return Run(simulation=simulation, folder=folder)


def lines(run):
    return [json.loads(line) for line in (run.folder.path / LEDGER).read_text().splitlines()]


def summary(run):
    return json.loads((run.folder.path / "summary.json").read_text())


def digests(run):
    names = ("model.safetensors", LEDGER)
    return [sha256((run.folder.path / name).read_bytes()) for name in names]


def test_there_is_something_to_test():
    assert {"dp_sgd", "user_dp", "local_dp", "label_dp"} <= set(NAMES)
    for name in NAMES:
        assert yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["_target_"].startswith(
            ("privacy.", "fedsim.")
        )


# --- engines -------------------------------------------------------------------------------------


@every
def test_the_cohort_engine_ends_as_the_sequential_one(case, tmp_path):
    ends, counts = [], []
    for engine in ("in_process", "cohort"):
        chunk = ["engine.chunk=3"] if engine == "cohort" else []
        simulation = build(case, tmp_path, f"engine={engine}", *chunk)
        begin = simulation.runtime.initial_params()
        reports = list(simulation.loop.run(begin))
        ends.append(reports[-1][0])
        counts.append([(report.admitted, report.rejected) for _, report in reports])
        assert distance(ends[-1], begin) > 1e-4
        if engine == "cohort" and "moon" not in str(case[1]):
            assert simulation.grid.plan == ("vmap" if case[0] in WHOLE else "rules")
    assert distance(ends[1], ends[0]) < 1e-9
    assert [sorted(a) for a, _ in counts[0]] == [sorted(a) for a, _ in counts[1]]
    if "attack=nan" in case[1]:
        assert all(rejected == {"non-finite": 2} for _, rejected in counts[1])


@stateful
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(case, tmp_path):
    whole = start(case, tmp_path)
    list(whole.start())
    stops = iter([True])
    cut = start(case, tmp_path, stop=lambda: next(stops))
    assert len(list(cut.start())) == 1
    rest = again(cut)
    assert [report.server_round for report in rest.resume()] == [2, 3]
    assert digests(rest) == digests(whole)
    assert summary(rest)["privacy"] == summary(whole)["privacy"]


# --- the ledger ----------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill_in(run, server_round, *, before=False):
    """End a run while a round's replies are drawn, as a kill would: nothing more is written."""
    grid, asked = run.simulation.grid, [0]
    send = grid.send_and_receive

    def dying(messages, **values):
        asked[0] += 1
        if asked[0] == server_round:
            raise Killed
        return send(messages, **values)

    grid.send_and_receive = dying
    with pytest.raises(Killed):
        list(run.start())


@stateful
def test_a_kill_never_lowers_epsilon(case, tmp_path):
    """Killed in each round, after its ledger line: resumed, it claims what it would have."""
    whole = start(case, tmp_path)
    list(whole.start())
    for server_round in (1, 3):  # before and after the only checkpoint on the way
        run = start(case, tmp_path, "checkpoint.every=2")
        kill_in(run, server_round)
        lost = again(run)
        list(lost.resume())
        assert digests(lost) == digests(whole)
        assert summary(lost)["privacy"] == summary(whole)["privacy"]
        epsilon = summary(lost)["privacy"]["epsilon"]
        assert epsilon >= summary(whole)["privacy"]["epsilon"] > 0


@charged
def test_fresh_noise_is_charged_for_once_more(case, tmp_path):
    """Drawn from the system's generator, a round that is done again is another release."""
    whole = start(case, tmp_path, "privacy.noise_source=system")
    list(whole.start())
    run = start(case, tmp_path, "privacy.noise_source=system")
    kill_in(run, 2)
    lost = again(run)
    list(lost.resume())
    assert [line["round"] for line in lines(whole)] == [1, 2, 3]
    assert [line["round"] for line in lines(lost)] == [1, 2, 2, 3]
    assert summary(lost)["privacy"]["epsilon"] > summary(whole)["privacy"]["epsilon"]
    assert "operating system" in summary(lost)["privacy"]["noise"]
    assert digests(lost)[0] != digests(whole)[0]


@basic
def test_a_round_is_on_the_disk_before_anybody_is_asked(case, tmp_path):
    run = start(case, tmp_path)
    grid, seen = run.simulation.grid, []
    send = grid.send_and_receive

    def spy(messages, **values):
        seen.append([line["round"] for line in lines(run)])
        return send(messages, **values)

    grid.send_and_receive = spy
    list(run.start())
    for server_round, found in enumerate(seen, start=1):
        assert found == [0] or server_round in found, "all of it before the first, or its own line"
        assert max(found) <= server_round
    if case[0] in ONCE:
        assert seen == [[0]] * 3
    else:  # what is settled before the first round has a line of its own
        assert [[r for r in found if r] for found in seen] == [[1], [1, 2], [1, 2, 3]]


def stopped(tmp_path):
    """A run stopped after two of its three rounds."""
    stops = iter([False, True])
    run = start(BASIC["local_dp"], tmp_path, stop=lambda: next(stops))
    list(run.start())
    return run


def test_a_torn_last_line_is_dropped(tmp_path):
    run = stopped(tmp_path)
    path = run.folder.path / LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:37])
    rest = again(run)
    list(rest.resume())
    assert path.read_bytes().startswith(whole)
    assert [line["round"] for line in lines(rest)] == [1, 2, 3]


def test_a_damaged_ledger_is_not_resumed(tmp_path):
    run = stopped(tmp_path)
    path = run.folder.path / LEDGER
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)
    broken = [second, first, second + first, b"", first + first, whole + b"[1]\n"]
    rng = np.random.default_rng(0)
    positions = rng.choice(len(whole), 25, replace=False).tolist()
    for position in [*positions, len(first) - 1, len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        broken.append(bytes(flipped))
    chain = again(run).folder.load_checkpoint().covers[LEDGER]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(ResumeError, match=r"ledger\.jsonl"):
            Ledger(path, run.simulation.protection).load(chain)
    with pytest.raises(ResumeError, match=r"ledger\.jsonl"):
        list(again(run).resume())
    path.unlink()
    with pytest.raises(ResumeError, match=r"ledger\.jsonl"):
        list(again(run).resume())


def test_releases_count_even_where_all_checkpoints_are_gone(tmp_path):
    """Whoever removes them starts afresh, but cannot take back what was released."""
    import shutil

    run = start(BASIC["local_dp"], tmp_path, "privacy.noise_source=system")
    list(run.start())
    before = summary(run)["privacy"]
    shutil.rmtree(run.folder.path / "checkpoint")
    once = again(run)
    list(once.resume())
    assert [line["round"] for line in lines(once)] == [1, 2, 3, 1, 2, 3]
    assert summary(once)["privacy"]["epsilon"] > before["epsilon"]
    Ledger(once.folder.path / LEDGER, run.simulation.protection).load(once.ledger.chain)


@charged
def test_the_budget_ends_the_run_with_what_it_has(case, tmp_path):
    """Noise and budget given: two of three rounds are within it; resumed, it ends at once."""
    statements = {}
    free = start(case, tmp_path)
    for report in free.start():
        statements[report.server_round] = free.simulation.protection.statement().epsilon
    budget = (statements[2] + statements[3]) / 2
    run = start(case, tmp_path, f"privacy.epsilon={budget}")
    with pytest.raises(BudgetError, match=r"round \d would bring epsilon") as caught:
        list(run.start())
    assert caught.value.exit_code == 3
    kept = summary(run)
    assert (kept["status"], kept["server_round"]) == ("budget", 2)
    assert all(line["budget"] == budget for line in run.folder.rounds() if line["server_round"])
    assert kept["privacy"]["epsilon"] == pytest.approx(statements[2], rel=1e-12)
    assert (run.folder.path / "model.safetensors").is_file()
    assert [line["round"] for line in lines(run)] == [1, 2]
    before = digests(run)
    with pytest.raises(BudgetError):
        list(again(run).resume())
    assert digests(run) == before
    assert summary(run)["status"] == "budget"


def test_the_command_line_says_so_and_exits_with_3(tmp_path):
    words = [*WORDS, "privacy=local_dp", *NOISE, *FULL, "rounds=9"]
    told = CliRunner().invoke(
        app,
        ["run", "scenario=quickstart", *words, f"output.root={tmp_path}", "privacy.epsilon=12"],
    )
    assert told.exit_code == 3
    assert "over the budget" in told.output and "model so far is kept" in told.output
    (folder,) = (tmp_path / "quickstart").iterdir()
    assert (folder / "report.html").is_file()
    told = CliRunner().invoke(app, ["resume", str(folder)])
    assert told.exit_code == 3


# --- what is said --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*BASIC, *ADAPTIVE, "dp_sgd, replace one", "user_dp, uniform", "user_dp, full"]
)
def test_every_field_of_the_statement_is_filled(name, tmp_path):
    protection = build(CASES[name], tmp_path).runtime.protection
    for statement in (protection.planned(), protection.statement()):
        for field in dataclasses.fields(statement):
            value = getattr(statement, field.name)
            assert value or field.name in ("delta", "epsilon", "best_of"), field.name
        text = str(statement)
        for needed in (statement.unit, statement.accountant, statement.trust, statement.noise):
            assert needed in text
        assert statement.delta > 0 or statement.unit == "label" or name == "local_reports"
    assert 0 < protection.planned().epsilon < float("inf")
    assert protection.statement().epsilon == 0


@basic
def test_the_plan_the_folder_and_the_lines_hold_the_claim(case, tmp_path, capsys):
    run = start(case, tmp_path)
    planned = run.simulation.runtime.protection.planned()
    shown = []
    for report in run.start():
        told = describe(report, 3, {})
        shown.append(told)
        assert report.epsilon is not None
        assert f"ε ≤ {report.epsilon:.3f} at δ {planned.delta:.1e} per {planned.unit}" in told
    final = run.simulation.protection.statement()
    assert report.epsilon >= final.epsilon * (1 - 1e-12)
    for file, expected in (("privacy", planned), ("summary", final)):
        held = json.loads((run.folder.path / f"{file}.json").read_text())
        held = held if file == "privacy" else held["privacy"]
        assert held == json.loads(json.dumps(expected.to_json()))
        assert held["statement"] == str(expected)
        assert held["epsilon"] == expected.epsilon
    for line in run.folder.rounds():
        assert line["epsilon"] is not None and f"per {planned.unit}" in line["privacy"]
    assert str(planned) in plan(build(case, tmp_path)).privacy


def test_without_noise_nothing_is_claimed(tmp_path):
    case = ("user_dp", [*BERNOULLI, "privacy.epsilon=null", "privacy.noise_multiplier=0"])
    run = start(case, tmp_path)
    list(run.start())
    held = summary(run)["privacy"]
    assert held["epsilon"] is None
    assert "nothing is claimed" in held["statement"]


@basic
def test_of_a_smoke_run_nothing_is_claimed(case, tmp_path):
    simulation = build(case, tmp_path, smoke=Smoke())
    run = Run(simulation=simulation, folder=RunFolder.create(simulation.config, smoke=True))
    reports = list(run.start())
    assert all(report.epsilon is None and not report.privacy for report in reports)
    assert not (run.folder.path / LEDGER).exists()
    held = [summary(run)["privacy"], json.loads((run.folder.path / "privacy.json").read_text())]
    for values in held:
        assert values["epsilon"] is None
        assert values["statement"].startswith("nothing is claimed")
        assert "smoke" in values["statement"]


# --- what leaves a client ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["in_process", "cohort"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONCE | ASK])
def test_a_reply_tells_neither_the_number_of_samples_nor_the_loss(name, engine, tmp_path):
    case = (name, [*PLAIN.get(name, []), *FULL, f"engine={engine}"])
    simulation = build(case, tmp_path)
    loop, seen = simulation.loop, []
    send = loop.grid.send_and_receive

    def spy(messages, **values):
        replies = list(send(messages, **values))
        for reply in replies:
            (metrics,) = reply.content.metric_records.values()
            seen.append(dict(metrics))
            assert set(reply.content.array_records) <= {"arrays", "client-arrays"}
        return replies

    loop.grid.send_and_receive = spy
    list(loop.run(simulation.runtime.initial_params()))
    public = simulation.protection.public_examples
    assert len(seen) == 3 * (len(RAGGED) - (0 if simulation.privacy_part.hides_sizes else 1))
    assert all(metrics == {"num-examples": public} for metrics in seen)


@pytest.mark.parametrize("name", NAMES)
def test_participation_by_labels_is_refused(name, tmp_path):
    case = (name, [*PLAIN.get(name, []), "participation=bernoulli"])
    simulation = build(case, tmp_path, "participation.rates=label_correlated")
    with pytest.raises(ConfigError, match="depend on the clients' labels"):
        simulation.schedule  # noqa: B018


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ASK])
def test_the_loss_decomposition_is_refused(name, tmp_path):
    case = (name, [*PLAIN.get(name, []), *FULL])
    simulation = build(case, tmp_path, "evaluation.decomposition=true")
    with pytest.raises(ConfigError, match=r"does not cover|trains no model"):
        simulation.loop  # noqa: B018


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedavgm", "flower_fedavg"])
def test_a_round_without_anybody_releases_noise_all_the_same(strategy, tmp_path):
    """Also for strategies of Flower's, which are not asked for such a round otherwise."""
    case = ("user_dp", [*NOISE, "participation=bernoulli", "participation.rate=0.0001"])
    simulation = build(case, tmp_path, f"strategy={strategy}")
    params = simulation.runtime.initial_params()
    models = [params]
    for model, report in simulation.loop.run(params):
        assert report.asked == 0
        models.append(model)
    for before, after in pairwise(models):
        assert distance(after, before) > 0
    if strategy in ("fedavg", "flower_fedavg"):  # x + noise / m
        moved = torch.cat([(models[1][n] - t).flatten() for n, t in params.items()])
        std = float(moved.std()) * simulation.protection.denominator
        assert std == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("start_at", [0.05, 20.0])
def test_the_adaptive_norm_of_a_whole_run_follows_the_norms_of_its_updates(start_at, tmp_path):
    """Started 20 times and more too small and too large, both runs end near the median norm."""
    own = [*FULL, "privacy.epsilon=null", "privacy.noise_multiplier=0.01", "rounds=60"]
    own += ["privacy.clipping=adaptive", "privacy.count_noise=0.1", "client.lr=0.02"]
    simulation = build(("user_dp", own), tmp_path, f"privacy.clip_norm={start_at}")
    norms = []
    protection = simulation.protection
    seal = protection.seal_

    def spy(weights, start, *rest):
        updates = [(rows - start[name]).flatten(1) for name, rows in weights.items()]
        norms.append(torch.cat(updates, 1).norm(dim=1))
        return seal(weights, start, *rest)

    protection.seal_ = spy
    list(simulation.loop.run(simulation.runtime.initial_params()))
    last = torch.cat(norms[-3:])
    assert float(last.quantile(0.2)) * 0.8 < protection.clip_norm < float(last.quantile(0.8)) * 1.25
