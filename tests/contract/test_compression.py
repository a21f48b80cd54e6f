"""What holds of every encoding that a scenario can name: of its bytes, of whole runs with it."""

from __future__ import annotations

from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedsim.compression import Codec, Compressor
from fedsim.compression.update import ENCODED
from fedsim.config import Config, compose
from fedsim.engines.flwr_compat import encoded_bytes
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import sha256
from fedsim.lifecycle import Run
from fedsim.results import RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from tests.helpers import distance

FOLDER = Path(__file__).parents[2] / "scenarios" / "compression"
NAMES = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"none"})
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
COUNTS = (1, 2, 511, 512, 513, 1300)


def make(name: str) -> Codec:
    fields = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    module, _, cls = fields.pop("_target_").rpartition(".")
    codec: Codec = getattr(import_module(module), cls)(**fields)
    return codec


def draws() -> np.random.Generator:
    return np.random.default_rng(0)


# --- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_length_depends_on_the_length_alone(name: str, dtype: np.dtype) -> None:
    codec, rng = make(name), np.random.default_rng(1)
    for count in COUNTS:
        vectors = [np.zeros(count), np.ones(count), rng.normal(size=count), np.full(count, np.nan)]
        for vector in vectors:
            code = codec.encode(vector.astype(dtype), draws())
            assert code.dtype == np.uint8
            assert len(code) == codec.size(count, dtype)
            decoded = codec.decode(code, count, dtype)
            assert decoded.dtype == dtype
            assert decoded.shape == (count,)
        assert codec.size(count, dtype) < count * dtype.itemsize or count < 9
    assert (codec.decode(codec.encode(vectors[0].astype(dtype), draws()), count, dtype) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_not_hidden(name: str, bad: float) -> None:
    codec = make(name)
    for dtype in DTYPES:
        for place in (0, 700, 1299):
            vector = np.random.default_rng(1).normal(size=1300).astype(dtype)
            vector[place] = bad
            decoded = codec.decode(codec.encode(vector, draws()), 1300, dtype)
            assert not np.isfinite(decoded).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_key_gives_the_same_bytes_and_the_argument_stays(name: str) -> None:
    codec, vector = make(name), np.random.default_rng(1).normal(size=1300)
    before = vector.copy()
    codes = [codec.encode(vector, draws()).tolist() for _ in range(2)]
    assert codes[0] == codes[1]
    assert (vector == before).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_goes_there_and_back(name: str) -> None:
    """Integers exactly, frozen tensors untouched, floats by their update, in any order of names."""
    compressor = Compressor(codec=make(name), seed=3, frozen=frozenset({"kept"}))
    rng = torch.Generator().manual_seed(0)
    start = {
        "w": torch.randn(30, 20, generator=rng), "kept": torch.ones(5), "b": torch.zeros(()),
        "seen": torch.tensor([4, 5]),
    }  # fmt: skip
    model = {n: t + 1 if not t.is_floating_point() else t + 0.1 for n, t in start.items()}
    sent, memory = compressor.of_client(model, start, 7, 2, {})
    assert {n: (t.shape, t.dtype) for n, t in sent.items()} == {
        n: (t.shape, t.dtype) for n, t in compressor.like(start).items()
    }
    assert set(sent) == {ENCODED, "seen"}
    again = compressor.restore(sent, start)
    assert list(again) == list(start)
    assert torch.equal(again["seen"], torch.tensor([5, 6]))
    assert torch.equal(again["kept"], torch.ones(5))
    shuffled = {name: start[name] for name in ("seen", "b", "kept", "w")}
    other, _ = compressor.of_client(model, shuffled, 7, 2, {})
    assert torch.equal(other[ENCODED], sent[ENCODED])
    update = torch.cat([(again[n] - start[n]).flatten() for n in ("b", "w")])
    truth = torch.cat([(model[n] - start[n]).flatten() for n in ("b", "w")])
    if memory:
        torch.testing.assert_close(update + memory["residual"], truth)
    assert 0 < float(update.norm()) <= 2 * float(truth.norm())
    assert bool(memory) == compressor.codec.remembers


# --- whole runs --------------------------------------------------------------------------------

WORDS = [
    *("rounds=3", "partition.num_clients=9", "participation.clients_per_round=6", "seed=5"),
    *("model.hidden=[8]", "client.epochs=1", "client.batch_size=20", "client.lr=0.05"),
    *("device=cpu", "checkpoint.every=1", "precision=float64", "devices=unequal"),
]
STRATEGIES = ["scaffold", "flower_fedavg", "fedbuff"]
"""State per client, and more than a model sent; messages in the hands of another's code; replies
that are used later."""

REMEMBERING = [name for name in NAMES if make(name).remembers]


def config(name: str, *words: str) -> Config:
    return compose("quickstart", [*WORDS, f"compression={name}", *words])


def reports(simulation: Simulation) -> tuple[dict[str, torch.Tensor], list[RoundReport]]:
    results = list(simulation.loop.run(simulation.runtime.initial_params()))
    return results[-1][0], [report for _, report in results]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [*((name, "fedavg") for name in NAMES), *product(REMEMBERING[:1], STRATEGIES)],
)
def test_engines_agree_and_bytes_are_those_of_every_message(
    name: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohort as in process, tensors as bytes; what is weighed is what a wire carries."""
    words = [f"strategy={strategy}"]
    end, told = reports(Simulation(config(name, *words, "engine.chunk=2")))
    weighed: list[int] = []
    plain = InProcessGrid.run_one

    def on_the_wire(self: InProcessGrid, message: Message) -> Message:
        reply = plain(self, message)
        weighed.append(encoded_bytes(reply.content))
        return reply

    monkeypatch.setattr(InProcessGrid, "run_one", on_the_wire)
    wire = ["engine=in_process", "engine.wire_check=true"]
    simulation = Simulation(config(name, *words, *wire))
    other, again = reports(simulation)
    assert distance(other, end) < 1e-9
    assert distance(end, simulation.runtime.initial_params()) > 1e-3
    up = [report.footprint["train"]["bytes-up"] for report in told[1:]]
    assert up == [report.footprint["train"]["bytes-up"] for report in again[1:]]
    assert [each for exchange in up for each in exchange if each] == weighed
    assert [report.rejected for report in told + again] == [{}] * 8


@pytest.mark.parametrize("late", ["drop", "keep"])
def test_who_is_late_does_not_depend_on_chunks(late: str) -> None:
    """An encoded reply is shorter than the model that admission would ask for."""
    words = ["pace=over_selection", "pace.replies=3", f"pace.late={late}"]
    words += ["devices.up=2e3", "devices.flops=1e12", "engine.plan=rules"]
    ends = [reports(Simulation(config("top_k", *words, f"engine.chunk={k}"))) for k in (1, 6)]
    assert distance(ends[0][0], ends[1][0]) < 1e-12
    admitted = [[sorted(report.admitted) for report in told] for _, told in ends]
    assert admitted[0] == admitted[1]
    assert [len(clients) for clients in admitted[0]][1] == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_is_its_code_and_the_framing_of_one_array(name: str) -> None:
    simulation = Simulation(config(name))
    _, (_, report, *_) = reports(simulation)
    count = sum(t.numel() for t in simulation.runtime.initial_params().values())
    code = make(name).size(count, np.dtype(np.float64))
    assert name not in LENGTHS or code == LENGTHS[name](count)
    content = RecordDict(
        {
            "arrays": ArrayRecord({ENCODED: Array(np.zeros(code, np.uint8))}),
            "metrics": MetricRecord({"num-examples": 1.0, "train-loss": 1.0}),
        }
    )
    assert set(report.footprint["train"]["bytes-up"]) == {encoded_bytes(content)}
    assert encoded_bytes(content) < code + 400


LENGTHS = {
    "qsgd": lambda n: -(-n // 512) * 8 + -(-n * 5 // 8),
    "uniform": lambda n: -(-n // 512) * 16 + n // 2 + n % 2,
    "top_k": lambda n: round(0.05 * n) * 8 + -(-round(0.05 * n) * (n - 1).bit_length() // 8),
}
"""The bytes of a code, as its header has them."""


@pytest.mark.parametrize("engine", ["cohort", "in_process"])
@pytest.mark.parametrize("name", REMEMBERING)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    name: str, engine: str, tmp_path: Path
) -> None:
    """What clients remember is in the checkpoint."""
    made = config(name, f"engine={engine}", f"output.root={tmp_path}")
    whole = Run(simulation=Simulation(made), folder=RunFolder.create(made))
    list(whole.start())
    stops = iter([False, False, True])
    folder = RunFolder.create(made)
    list(Run(simulation=Simulation(made), folder=folder, stop=lambda: next(stops)).start())
    opened = RunFolder.open(folder.path)
    list(Run(simulation=Simulation(opened.config()), folder=opened).resume())
    ends = [path / "model.safetensors" for path in (whole.folder.path, folder.path)]
    assert sha256(ends[0].read_bytes()) == sha256(ends[1].read_bytes())
