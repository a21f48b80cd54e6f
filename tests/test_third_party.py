"""Third-party strategies are saved and restored such that later rounds are bit for bit the same."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Strategy,
)

from fedsim import third_party
from fedsim.checkpoint import Checkpoint, load_latest, save
from fedsim.client import ClientContext
from fedsim.config import build_part, compose
from fedsim.errors import ResumeError
from fedsim.records import Params
from fedsim.rounds import RoundLoop
from fedsim.simulation import Simulation
from fedsim.strategy import State
from tests.contract._discover import FLOWERS


def through_disk(folder: Path, params: Params, state: State) -> tuple[Params, State]:
    saved = Checkpoint(
        server_round=3, last_round=6, params=params, state=state, covers={}, metrics_bytes=0
    )
    save(folder / "checkpoint", saved, keep=1)
    loaded = load_latest(folder / "checkpoint")
    assert loaded is not None
    return {name: loaded.params[name] for name in params}, loaded.state


def fresh_loop(simulation: Simulation) -> RoundLoop:
    """The same loop with a strategy that has never seen a round."""
    strategy: Strategy = build_part(simulation.config, "strategy")
    return dataclasses.replace(simulation.loop, strategy=strategy)


@pytest.fixture
def _quick_collections() -> Iterator[None]:
    """Flower collects garbage for each reply; everything that is loaded would be searched."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collections")
@pytest.mark.parametrize("name", FLOWERS)
def test_flowers_strategies_resume_bit_for_bit(tmp_path: Path, name: str) -> None:
    words = [f"strategy={name}", "model=linear", "client.epochs=1", "device=cpu", "rounds=6"]
    words += ["partition.num_clients=20", "participation.clients_per_round=8"]
    simulation = Simulation(compose("quickstart", [*words, "evaluation.central=false"]))
    whole = [params for params, _ in simulation.loop.run(simulation.runtime.initial_params())]

    loop = fresh_loop(simulation)
    params = simulation.runtime.initial_params()
    for params, report in loop.run(simulation.runtime.initial_params()):  # noqa: B007
        if report.server_round == 3:
            break
    params, state = through_disk(tmp_path, params, third_party.state_of(loop.strategy))
    again = fresh_loop(simulation)
    third_party.restore(again.strategy, state)
    resumed = [params for params, _ in again.run(params, 3)]

    assert len(resumed) == 3
    for got, expected in zip(resumed, whole[3:], strict=True):
        assert all(torch.equal(got[key], expected[key]) for key in expected)


class Odd(FedAvg):
    """Carries state of every kind that can be saved, and of some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.flag = False
        self.rate = np.float64(0.0)
        self.small = np.float32(0.0)
        self.nothing: Any = None
        self.scalar = np.zeros(())
        self.empty = np.zeros((0, 3))
        self.big = np.zeros(2, ">i4")
        self.blob = b""
        self.pair = (0, np.zeros(1))
        self.by_client: dict[int, np.ndarray] = {}
        self.nested: list[Any] = []
        self.record = ArrayRecord()
        self.inner = FedAdam()

    def advance(self) -> None:
        self.count = 2**70
        self.flag = True
        self.rate = np.float64(1 / 3)
        self.small = np.float32(1 / 3)
        self.nothing = np.ones(2, np.float16)
        self.scalar = np.array(2.5)
        self.empty = np.zeros((2, 0))
        self.big = np.array([1, 256], ">i4")
        self.blob = b"\0\xff"
        self.pair = (3, np.arange(2))
        self.by_client = {7: np.ones(2), 3: np.zeros(1)}
        self.nested = [{"a": [1.5, np.inf]}, []]
        self.record = ArrayRecord({"w": Array(np.arange(3.0))})
        self.inner.m_t = {"w": np.full((), 0.25, np.float32)}


def test_state_of_every_kind_comes_back(tmp_path: Path) -> None:
    odd, fresh = Odd(), Odd()
    odd.advance()
    _, state = through_disk(tmp_path, {}, third_party.state_of(odd))
    third_party.restore(fresh, state)
    assert fresh.count == 2**70
    assert fresh.flag is True
    for name in ("rate", "small"):
        assert type(getattr(fresh, name)) is type(getattr(odd, name))
        assert getattr(fresh, name) == getattr(odd, name)
    for name in ("nothing", "scalar", "empty", "big"):
        got, expected = getattr(fresh, name), getattr(odd, name)
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got, expected)
    assert fresh.blob == b"\0\xff"
    assert isinstance(fresh.pair, tuple)
    assert fresh.pair[0] == 3
    assert fresh.pair[1].tolist() == [0, 1]
    assert list(fresh.by_client) == [7, 3]
    assert fresh.nested == [{"a": [1.5, np.inf]}, []]
    assert list(fresh.record) == ["w"]
    assert fresh.record["w"].numpy().tolist() == [0.0, 1.0, 2.0]
    inner = fresh.inner.m_t
    assert inner is not None
    assert (inner["w"].shape, inner["w"].dtype, float(inner["w"])) == ((), np.float32, 0.25)


def test_restored_arrays_may_be_written_to_and_are_not_shared() -> None:
    odd, fresh = Odd(), Odd()
    odd.advance()
    third_party.restore(fresh, third_party.state_of(odd))
    fresh.scalar += 1
    fresh.pair[1][0] = 9
    assert float(odd.scalar) == 2.5
    assert odd.pair[1].tolist() == [0, 1]


def test_functions_and_texts_are_left_to_the_scenario() -> None:
    strategy = FedAvg(arrayrecord_key="mine")
    state = third_party.state_of(strategy)
    fresh = FedAvg(arrayrecord_key="other")
    third_party.restore(fresh, state)
    assert fresh.arrayrecord_key == "other"
    assert fresh.train_metrics_aggr_fn is not None


def test_a_wrapper_carries_what_it_wraps() -> None:
    def wrapped() -> DifferentialPrivacyServerSideFixedClipping:
        inner = FedAdam()
        return DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 0.5, 5)

    before, after = wrapped(), wrapped()
    assert isinstance(before.strategy, FedAdam)
    before.strategy.v_t = {"w": np.arange(2.0)}
    third_party.restore(after, third_party.state_of(before))
    assert isinstance(after.strategy, FedAdam)
    assert after.strategy.v_t is not None
    assert after.strategy.v_t["w"].tolist() == [0.0, 1.0]


def test_the_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(ResumeError, match="FedAvg has no attribute 'beta_1'"):
        third_party.restore(FedAvg(), third_party.state_of(FedAdam()))
    with pytest.raises(ResumeError, match="no state of FedAvg"):
        third_party.restore(FedAvg(), {"last": np.zeros(3)})
    odd, other = Odd(), Odd()
    other.inner = None  # type: ignore[assignment]
    with pytest.raises(ResumeError, match=r"Odd\.inner is no strategy any more"):
        third_party.restore(other, third_party.state_of(odd))


# --- clients ---------------------------------------------------------------------------------


def weights_of(*overrides: str) -> np.ndarray:
    words = ["rounds=3", "client.epochs=2", "precision=float64", *overrides]
    simulation = Simulation(compose("quickstart", words))
    *_, (params, _) = simulation.loop.run(simulation.runtime.initial_params())
    return np.concatenate([tensor.numpy().ravel() for tensor in params.values()])


def test_flowers_fedprox_gets_its_proximal_term() -> None:
    """μ = 0 is FedAvg; with μ > 0 both engines agree, differ from it, and are our own FedProx."""
    fedavg = weights_of("strategy=flower_fedavg")
    none = weights_of("strategy=flower_fedprox", "strategy.proximal_mu=0")
    assert np.allclose(none, fedavg, rtol=0, atol=1e-15)
    engines = ("cohort", "in_process")
    some = [weights_of("strategy=flower_fedprox", f"engine={engine}") for engine in engines]
    assert np.linalg.norm(some[0] - fedavg) > 1e-3
    assert np.allclose(*some, rtol=0, atol=1e-12)
    assert np.allclose(some[0], weights_of("strategy=fedprox"), rtol=0, atol=1e-12)


def test_the_proximal_term_by_hand() -> None:
    half = third_party.half_for(FedProx(proximal_mu=0.5))
    context = ClientContext(
        task="regression",
        model=lambda params, x: x,
        start={"w": torch.tensor([1.0, 2.0])},
        arrays={},
        server_round=1,
        lr=0.1,
        steps=1,
    )
    moved = half.correct({"w": torch.tensor([10.0, 0.0])}, {"w": torch.tensor([3.0, 2.0])}, context)
    assert moved["w"].tolist() == [11.0, 0.0]
