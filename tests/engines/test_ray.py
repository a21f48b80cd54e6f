"""Both engines on Ray: the results of those without, faults, and nothing left behind.

Most tests share one small cluster, which is also how `engine.address` is tried.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedsim.config import compose
from fedsim.engines import ray_start
from fedsim.engines.ray_cohort import OUTSTANDING, PARTS, Answer, RayCohort, RayCohortGrid
from fedsim.errors import ConfigError
from fedsim.lifecycle import Run
from fedsim.models.linear import LinearModel
from fedsim.records import Instructions, Params, to_record
from fedsim.results import RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.sweep import front
from fedsim.sweep.folder import SweepFolder
from tests.helpers import classification, distance, make_runtime

HOME = Path(__file__).parents[2]
with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason=f"Ray is not installed: {ray_start.INSTALL}"
)
SMALL = [
    "rounds=3",
    "client.epochs=1",
    "model.hidden=[16]",
    "partition.num_clients=20",
    "partition.holdout=0.2",
    "participation.clients_per_round=8",
    "evaluation.clients=cohort",
]


def ours(name: str) -> list[str]:
    return ["plugins=[tests.]", f"strategy._target_=tests.engines.ray_parts.{name}"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two CPUs and one GPU, which is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}"]
    words += ["--num-cpus=2", "--num-gpus=1", "--include-dashboard=false", "--block"]
    words += ["--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as head:
        try:
            assert head.stdout
            for line in head.stdout:
                if "started" in line:
                    break
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.communicate(timeout=30)


def scenario(engine: str, *words: str) -> Simulation:
    return Simulation(compose("quickstart", [*SMALL, f"engine={engine}", *words]))


def rounds_of(simulation: Simulation) -> tuple[Params, list[RoundReport]]:
    results = list(simulation.loop.run(simulation.runtime.initial_params()))
    return results[-1][0], [report for _, report in results]


def run(engine: str, *words: str) -> tuple[Params, list[RoundReport]]:
    with closing(scenario(engine, *words)) as simulation:
        return rounds_of(simulation)


def sha(params: Params) -> str:
    digest = hashlib.sha256()
    for name, tensor in params.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def same_but_for_time(one: Sequence[RoundReport], other: Sequence[RoundReport]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.admitted == b.admitted
        assert a.rejected == b.rejected
        assert a.train == b.train
        assert a.clients == b.clients
        assert a.per_client == b.per_client
        assert a.central == b.central


# --- engine=ray ----------------------------------------------------------------------------------


@with_ray
def test_flowers_engine_ends_with_the_same_bits(address: str) -> None:
    """One start of the engine serves several strategies: their clients do the same work."""
    there = [f"engine.address={address}", "engine.num_cpus=2"]
    with closing(scenario("ray", *there)) as first:
        grid = first.grid
        for strategy in ("fedavg", "fedau", "fedadam", "flower_fedavg"):
            words = [f"strategy={strategy}"]
            if strategy == "flower_fedavg":  # draws among the nodes by itself
                words += ["strategy.fraction_train=0.5", "strategy.fraction_evaluate=0.5"]
            expected, reports = rounds_of(scenario("in_process", *words))
            simulation = scenario("in_process", *words)
            simulation.__dict__["grid"] = grid
            got, others = rounds_of(simulation)
            assert sha(got) == sha(expected), strategy
            same_but_for_time(reports, others)
            asked = 4 if strategy == "flower_fedavg" else 8
            assert [len(report.admitted) for report in others] == [0, asked, asked, asked]
            assert all(len(report.per_client["client-index"]) > 1 for report in others[1:])


PEERS = ["topology=ring", "topology.latency_s=0.1"]
IMAGINED = {
    "dsgd": ["strategy=dsgd", *PEERS],
    "gradient_tracking": ["strategy=gradient_tracking", *PEERS],
    "hierfavg": ["strategy=hierfavg", "topology=hierarchical", "topology.bandwidth=1e5"],
    "fedbuff": ["strategy=fedbuff", "strategy.concurrency=6", "strategy.buffer=4"],
    "fedasync": ["strategy=fedasync", "strategy.concurrency=6"],
}


@with_ray
@pytest.mark.nightly
@pytest.mark.parametrize("name", IMAGINED)
def test_topologies_and_asynchrony_are_the_same_on_both_engines(name: str, address: str) -> None:
    """Weights to the bit, and what the clock and the links have counted."""
    words = ["devices=unequal", *IMAGINED[name]]
    there = [f"engine.address={address}", "engine.num_cpus=1"]
    chunks = "engine.chunk=3"  # float sums of a chunk depend on how many clients it holds
    for engine, beside, own in (
        ("ray", ["in_process"], []),
        ("ray_cohort", ["cohort", chunks], [chunks, "engine.actors=2"]),
    ):
        got, others = run(engine, *words, *there, *own)
        expected, reports = run(*beside, *words)
        assert sha(got) == sha(expected), engine
        same_but_for_time(reports, others)
        assert [r.footprint for r in others] == [r.footprint for r in reports]
        assert [r.simulated_seconds for r in others] == [r.simulated_seconds for r in reports]
        assert others[-1].simulated_seconds > 0  # type: ignore[operator]


LOCAL = [
    *("rounds=3", "model.hidden=[4]", "partition.num_clients=5", "participation=full"),
    *("strategy.restart=2", "privacy=diff2", "privacy.trust=local"),
    *("partition.holdout=0.2", "evaluation.clients=cohort"),
]
WHOLE = {
    "diff2": ["strategy=diff2", *LOCAL],
    "bvr_l_sgd": ["strategy=bvr_l_sgd", *LOCAL],
    "taps": [
        *("data=zipf", "data.sizes=[300,200]", "data.bits=8", "data.items=50", "model=none"),
        *("partition.num_clients=3", "participation=full", "rounds=4", "privacy=local_reports"),
        *("strategy=taps", "strategy.levels=4", "strategy.shared_levels=1", "strategy.k=3"),
    ],
}


@with_ray
@pytest.mark.parametrize("name", WHOLE)
def test_clients_that_do_their_work_whole_end_with_the_same_bits(name: str, address: str) -> None:
    """With each client's own noise, on its sums and its steps; and answers to questions."""
    words = WHOLE[name]
    there = ["engine=ray", f"engine.address={address}", "engine.num_cpus=2"]
    with closing(Simulation(compose("quickstart", [*words, *there]))) as simulation:
        got, others = rounds_of(simulation)
    expected, reports = rounds_of(Simulation(compose("quickstart", [*words, "engine=in_process"])))
    assert sha(got) == sha(expected)
    same_but_for_time(reports, others)


@with_ray
def test_bags_and_the_noise_on_their_means_are_those_of_one_process(address: str) -> None:
    """An actor makes the bags anew, and draws each bag's noise itself."""
    words = ["rounds=2", "data.clip=3", "data.rest=short", "precision=float64"]
    there = ["engine=ray_cohort", f"engine.address={address}", "engine.actors=1"]
    ends = []
    for more in (there, ["privacy=aggregate_labels", *there], ["privacy=aggregate_labels"]):
        with closing(Simulation(compose("aggregate_diabetes", [*words, *more]))) as simulation:
            ends.append(rounds_of(simulation)[0])
    clean, noisy, expected = ends
    assert distance(noisy, expected) < 1e-12 < 1e-3 < distance(noisy, clean)


@with_ray
def test_arrays_of_each_client_and_failures_pass_through_flowers_engine(address: str) -> None:
    words = [*ours("EveryThirdFails"), f"engine.address={address}", "engine.num_gpus=1"]
    expected, reports = run("in_process", *words[:2])
    got, others = run("ray", *words)
    assert sha(got) == sha(expected)
    same_but_for_time(reports, others)
    failed = sum(client % 3 == 0 for client in (0, 1, 3, 5, 8, 9, 10, 19))
    assert others[1].rejected == {"error": failed}
    assert "FloatingPointError: criterion of a client\nTraceback" in others[1].details[0]


@with_ray
def test_a_run_that_is_resumed_on_ray_ends_with_the_same_bits(address: str, tmp_path: Path) -> None:
    expected, _ = run("in_process", "strategy=fedau")
    there = ["strategy=fedau", f"engine.address={address}", "engine.num_cpus=2"]
    config = compose("quickstart", [*SMALL, "engine=ray", *there, f"output.root={tmp_path}"])
    folder = RunFolder.create(config, smoke=False)
    done: list[int] = []
    with closing(Simulation(config)) as simulation:
        one = Run(simulation=simulation, folder=folder, stop=lambda: len(done) == 2)
        done += (report.server_round for report in one.start())
    assert done == [0, 1, 2]
    with closing(Simulation(config)) as simulation:
        done += (
            report.server_round for report in Run(simulation=simulation, folder=folder).resume()
        )
    assert done == [0, 1, 2, 3]
    saved = folder.load_checkpoint()
    assert saved is not None
    assert sha({name: saved.params[name] for name in expected}) == sha(expected)


@with_ray
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.num_gpus=2"], r"engine.num_gpus: .* fits nowhere; .* have 2 CPUs, 1 GPUs"),
        (["engine.num_cpus=3"], r"engine.num_cpus: .* fits nowhere"),
    ],
)
@pytest.mark.parametrize("engine", ["ray", "ray_cohort"])
def test_an_actor_that_fits_nowhere_is_refused(
    engine: str, words: list[str], message: str, address: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(engine, *words, f"engine.address={address}")
    assert not ray_start.need("ray").is_initialized()


@with_ray
@pytest.mark.parametrize(
    ("engine", "more"), [("ray", "engine.num_cpus=2"), ("ray_cohort", "engine.actors=2")]
)
def test_what_clients_remember_reaches_whoever_trains_them(
    engine: str, more: str, address: str
) -> None:
    words = ["compression=top_k", "precision=float64", "participation.clients_per_round=15"]
    expected, _ = run("in_process", *words)
    got, _ = run(engine, *words, f"engine.address={address}", more)
    assert distance(got, expected) < 1e-9


# --- engine=ray_cohort ---------------------------------------------------------------------------


@with_ray
def test_the_number_of_actors_leaves_no_trace_in_the_result(address: str) -> None:
    words = ours("Keeps")
    expected, reports = run("cohort", *words)
    there = [*words, f"engine.address={address}"]
    one, ones = run("ray_cohort", *there, "engine.actors=1")
    two, twos = run("ray_cohort", *there, "engine.actors=2", "engine.num_gpus=0.5")
    assert sha(one) == sha(two)
    same_but_for_time(ones, twos)
    assert distance(one, expected) < 1e-5
    for report, other in zip(reports, ones, strict=True):
        assert sorted(report.admitted) == sorted(other.admitted)
        assert report.train == pytest.approx(other.train, rel=1e-5)
        assert report.per_client.keys() == other.per_client.keys()
        for name, values in report.per_client.items():
            assert values == pytest.approx(other.per_client[name], rel=1e-5)


@with_ray
@pytest.mark.parametrize("plan", ["rules", "sequential"])
def test_who_fails_in_a_chunk_is_counted_and_spoils_nobody_else(plan: str, address: str) -> None:
    words = ours("EveryThirdFails")
    expected, reports = run("in_process", *words)
    there = [f"engine.address={address}", "engine.actors=1", f"engine.plan={plan}"]
    got, others = run("ray_cohort", *words, *there)
    assert distance(got, expected) < 1e-5
    for report, other in zip(reports, others, strict=True):
        assert sorted(report.admitted) == sorted(other.admitted)
        assert report.rejected == other.rejected
    assert "FloatingPointError: criterion of a client\nTraceback" in others[1].details[0]


@with_ray
def test_an_actor_that_dies_is_restarted_and_nothing_is_lost(address: str, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    words = [*ours("DiesOnce"), f"+strategy.file={bomb}"]
    expected, _ = run("cohort", *words, "engine.chunk=1")
    there = [f"engine.address={address}", "engine.actors=1", "engine.chunk=1"]
    bomb.touch()
    got, reports = run("ray_cohort", *words, *there)
    assert not bomb.exists()
    assert sha(got) == sha(expected)
    assert [report.rejected for report in reports] == [{}, {}, {}, {}]


class FakeTeam:
    """Two actors that answer in their own time: last asked, first done."""

    plan, why, chunk = "rules", "", 4

    def __init__(self, late: int = -1) -> None:
        self.outstanding, self.most = 0, 0
        self.sizes: list[int] = []
        self.late = late

    def __len__(self) -> int:
        return 2

    def put(self, model):
        return model

    def submit(self, ask, model):
        self.outstanding += 1
        self.most = max(self.most, self.outstanding)
        self.sizes.append(len(ask.clients))
        return len(self.sizes) - 1, ask

    def result(self, answer, deadline):
        self.outstanding -= 1
        number, ask = answer
        if number == self.late:
            raise TimeoutError
        ones = np.ones(len(ask.clients))
        return Answer(client_index=ask.clients, metrics={"num-examples": ones})


def instructions(grid: RayCohortGrid, count: int) -> Instructions:
    clients = np.arange(count)
    return Instructions(
        message_type="evaluate",
        server_round=1,
        client_index=clients,
        node_ids=grid.node_ids(clients),
        arrays=to_record(grid.runtime.initial_params(), zero_copy=True),
        config={},
        zero_copy=True,
    )


@pytest.mark.parametrize(("count", "chunk"), [(0, 1), (5, 1), (20, 3), (64, 4), (200, 4)])
def test_few_chunks_are_outstanding_and_they_come_in_order(count: int, chunk: int) -> None:
    team = FakeTeam()
    grid = RayCohortGrid(make_runtime(classification(), LinearModel()), team, None)
    seen: list[int] = []
    for got in grid.send_and_receive(instructions(grid, count)).chunks() if count else []:
        assert team.outstanding < OUTSTANDING * 2
        seen += got.client_index.tolist()
    assert seen == list(range(count))
    assert team.most <= OUTSTANDING * 2
    assert max(team.sizes, default=1) <= chunk
    assert count == 0 or len(team.sizes) >= min(PARTS, count) * 5 // 8


def test_a_chunk_that_comes_too_late_is_lost_and_no_other() -> None:
    grid = RayCohortGrid(make_runtime(classification(), LinearModel()), FakeTeam(late=1), 2)
    messages = instructions(grid, 6)
    replies = list(grid.send_and_receive(messages, timeout=5.0))
    assert [reply.has_error() for reply in replies] == [False, False, True, True, False, False]
    assert replies[2].error.reason == "no answer within 5 s (admission.timeout_s)"


# --- start-up, and what is left behind -----------------------------------------------------------


@pytest.mark.parametrize("engine", ["ray", "ray_cohort"])
def test_without_ray_the_command_is_given(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_start.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        run(engine)
    told = str(error.value)
    assert told.startswith(f"engine={engine}: Ray is not installed here")
    assert "pip install -c constraints.txt -e '.[ray]'" in told
    assert "pip install fedsim" not in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine=ray", "engine.num_gpus=1.5"], "engine.num_gpus: 1.5 is not allowed; a share"),
        (["engine=ray_cohort", "engine.num_gpus=1.5"], "engine.num_gpus: 1.5 is not allowed"),
        (["engine=ray", "engine.num_cpus=0"], r"engine.num_cpus: 0.* out of range"),
        (
            ["engine=ray", "engine.actors=2", "engine.address=auto"],
            "engine.*actors: on an existing",
        ),
        (["engine=ray", "device=cuda"], "device=cuda: with engine.num_gpus=0 Ray hides the GPUs"),
        (["scenario=million", "engine=ray"], "engine=ray: .* 1,000,000 clients"),
    ],
)
def test_what_cannot_run_is_refused_before_ray_is_started(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(ray_start, "need", started.append)
    monkeypatch.setattr(Simulation, "device", torch.device("cpu"))
    named = [word for word in words if word.startswith("scenario=")]
    name = named[0].removeprefix("scenario=") if named else "quickstart"
    with pytest.raises(ConfigError, match=message):
        Simulation(compose(name, [word for word in words if word not in named])).grid  # noqa: B018
    assert started == []


def test_a_run_that_was_put_together_by_hand_is_refused() -> None:
    with pytest.raises(ConfigError, match="put together by hand"):
        RayCohort().grid(make_runtime(classification(), LinearModel()))


@with_ray
def test_a_cluster_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(
        ConfigError, match=r"engine.address: no Ray cluster answers at '127.0.0.1:9'"
    ):
        run("ray_cohort", "engine.address=127.0.0.1:9")
    assert not ray_start.need("ray").is_initialized()


# Who is started in the background by a shell may have been told to ignore Ctrl-C.
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from fedsim.cli import app
app()
"""


def marked(mark: str) -> list[str]:
    """Return the processes whose environment holds a mark: all that a command has started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                name = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
                found += [] if state == "Z" else [name]
        except OSError:  # gone, or somebody else's
            continue
    return found


@with_ray
@pytest.mark.parametrize(
    ("engine", "when"), [("ray", "in a round"), ("ray_cohort", "in a round"), ("ray", "at start")]
)
def test_ctrl_c_leaves_no_process(engine: str, when: str, tmp_path: Path) -> None:
    mark = f"FEDSIM_TEST_MARK={tmp_path}"
    words = ["scenario=quickstart", f"engine={engine}", "rounds=100000", "engine.actors=1"]
    words += ["partition.num_clients=10", "participation.clients_per_round=2"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", *words, f"output.root={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(HOME), "FEDSIM_TEST_MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        assert command.stdout
        if when == "in a round":
            assert command.stdout.readline().startswith("round 0")
            time.sleep(1)
        else:
            while not any("raylet" in name for name in marked(mark)):
                time.sleep(0.1)
        assert len(marked(mark)) > 2
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    if when == "in a round":
        assert err.splitlines()[1] == "finishing this round; press Ctrl-C again to stop at once"
        assert "interrupted; go on with: fedsim resume" in err
    else:
        assert err.strip().splitlines()[-1] == "interrupted"
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@with_ray
def test_a_sweep_runs_on_a_cluster(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["scenario=quickstart", *SMALL[:-1], "client.lr=0.05,0.1"]
    assert front.sweep(words, None, front.Choice(ray=address)) == 0
    (head,) = tmp_path.glob("results/sweeps/*/*/sweep.yaml")
    for entry in SweepFolder.open(head.parent).entries:
        found = SweepFolder(head.parent).run_of(entry)
        assert found is not None and (found / "report.html").is_file()
        with closing(Simulation(compose("quickstart", entry.point.overrides))) as simulation:
            params, _ = rounds_of(simulation)
        saved = load_file(found / "model.safetensors")
        assert sha({name: saved[name] for name in params}) == sha(params)


@with_ray
def test_a_sweep_says_that_no_cluster_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster answers"):
        front.sweep(["scenario=quickstart", "seed=0,1"], None, front.Choice(ray="127.0.0.1:1"))
