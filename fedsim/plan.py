"""`fedsim plan`: what a scenario would cost, before it is run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from fedsim.admission import AdmittedReplies
from fedsim.asynchronous import AsynchronousStrategy
from fedsim.effort import check_memory, flops, samples_per_client
from fedsim.footprint import SECONDS
from fedsim.in_flight import InFlight
from fedsim.participation.timed import begin
from fedsim.records import Params
from fedsim.rounds import RoundLoop
from fedsim.simulation import Simulation
from fedsim.strategy import FedsimStrategy, Round
from fedsim.topology.traffic import ThroughEdges, ThroughServer, beside

SAMPLED_ROUNDS = 50
"""Over how many rounds, spread over the run, the number of participants is averaged."""
SAID_ROUNDS = 10_000
"""For how many rounds a strategy is asked what they move; later ones are taken to be like these."""


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """The cost of a run.

    Attributes:
        rounds, num_clients: Of the scenario.
        clients_per_round: Mean number of participants.
        parameters: Of the model.
        model_bytes: What one copy of the model takes on the wire, without framing.
        messages: Instructions and replies of all rounds, evaluation included.
        megabytes: Bytes that cross the links in all rounds, in MB of 10^6 bytes; of a strategy that
            asks, if all rounds cost what the first one does.
        round_seconds: One measured training round on this device, after a first one as warm-up.
        total_seconds: Estimate for all rounds; evaluation on the test set included.
        flops: Floating-point operations of training and central evaluation, of the model's matrix
            products and convolutions; those of plain SGD, whatever a strategy adds, and 0 of one
            that asks.
        chunk: How many clients train at once; 1 where the engine has no chunks.
        chunk_bytes: What these hold in memory, about.
        engine: How the engine runs the cohort.
        pace: How many replies of a round are on time, where not all are waited for; else empty.
        privacy: The statement of the privacy mechanism: its noise, and the final epsilon with all
            that it means nothing without.
        epsilon, delta: Of that statement; None without a mechanism that claims anything.
    """

    rounds: int
    num_clients: int
    clients_per_round: float
    parameters: int
    model_bytes: int
    messages: int
    megabytes: float
    round_seconds: float
    total_seconds: float
    flops: float
    chunk: int
    chunk_bytes: int
    engine: str
    pace: str
    privacy: str
    epsilon: float | None
    delta: float | None


def plan(simulation: Simulation) -> CostPlan:
    """Build a scenario, run one round of it twice, and add up the rest; writes nothing.

    Raises:
        ConfigError: The run cannot work, or its clients do not fit in memory; says what would.
    """
    loop, settings = simulation.loop, simulation.settings
    params = simulation.runtime.initial_params()
    rounds = np.unique(np.linspace(1, settings.rounds, SAMPLED_ROUNDS).astype(int))
    chunk = int(getattr(simulation.grid, "chunk", None) or 1)
    memory = check_memory(simulation.runtime, chunk)
    cohort = _cohort(simulation, rounds)
    seconds = []
    for _ in range(2):  # the first one pays for allocation and lazy imports
        if loop.pace is not None:
            loop.pace.in_flight = InFlight()
        started = time.perf_counter()
        _, replies = loop.train(_busy_round(simulation), params)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    if loop.evaluation.central is not None:
        loop.evaluation.central(params)
    central_seconds = time.perf_counter() - started
    evaluations = -(-settings.rounds // settings.evaluation.every)  # the last round always is
    evaluating = {"none": 0.0, "cohort": cohort, "all": float(simulation.partition.num_clients)}
    fused = settings.evaluation.fused
    evaluated = 0.0 if fused else evaluations * evaluating[settings.evaluation.clients]
    size = _size(params)
    asking = simulation.asking
    carried = size if asking is None else asking.exchanged / 2
    trained = settings.rounds * cohort
    if isinstance(simulation.strategy, AsynchronousStrategy):
        trained = min(trained, simulation.strategy.starts(settings.rounds))
    computed = 0.0
    if asking is None:
        each = flops(simulation.runtime)
        visited = samples_per_client(simulation.runtime, simulation.schedule, rounds)
        tested = evaluations * len(simulation.dataset.test_y) if settings.evaluation.central else 0
        computed = trained * visited * each.training + tested * each.forward
    claim = simulation.protection.planned()
    return CostPlan(
        rounds=settings.rounds,
        num_clients=simulation.partition.num_clients,
        clients_per_round=trained / settings.rounds,
        parameters=sum(t.numel() for t in params.values()),
        model_bytes=int(size),
        messages=round(2 * (trained + evaluated)),
        megabytes=_moved(simulation, params, carried, trained, evaluated) / 1e6,
        round_seconds=seconds[1],
        total_seconds=settings.rounds * seconds[1] + evaluations * central_seconds,
        flops=computed,
        chunk=chunk,
        chunk_bytes=memory,
        engine=_engine(simulation),
        pace=_pace(loop, replies),
        privacy=str(claim),
        epsilon=claim.epsilon if claim.private and math.isfinite(claim.epsilon) else None,
        delta=claim.delta if claim.private and math.isfinite(claim.epsilon) else None,
    )


def _moved(
    simulation: Simulation, params: Params, carried: float, trained: float, evaluated: float
) -> float:
    """Return the bytes that cross links in all rounds; those of models are of their numbers alone.

    Args:
        simulation: Of the run.
        params: The initial model.
        carried: Bytes of a message between a client and whom it is asked by.
        trained: How many are asked to train, in all rounds.
        evaluated: How many to evaluate.
    """
    strategy, topology = simulation.strategy, simulation.topology
    compressor, rounds = simulation.compressor, simulation.settings.rounds
    replied = carried if compressor is None else compressor.size(params)
    own = carried * (trained + evaluated) + replied * trained
    if not isinstance(strategy, FedsimStrategy):
        return topology.hops() * own
    count, nobody = simulation.partition.num_clients, np.arange(0)
    traffics = [
        strategy.traffic(
            Round(server_round=r, num_clients=count, asked=nobody, params=params), "train"
        )
        for r in range(1, min(rounds, SAID_ROUNDS) + 1)
    ]
    if isinstance(traffics[0], ThroughServer):
        return topology.hops() * own
    beside_all = rounds * float(np.mean([_size(beside(traffic) or {}) for traffic in traffics]))
    if isinstance(traffics[0], ThroughEdges):
        edges: int = sum(role == "edge" for _, role in simulation.graph.nodes(data="role"))
        return own + 2 * edges * beside_all
    neighbours: float = 2 * simulation.graph.number_of_edges() / count
    there = (trained / rounds - 1) / max(1, count - 1)
    return trained / rounds * neighbours * max(0.0, there) * beside_all


def _size(params: Params) -> float:
    return float(sum(t.numel() * t.element_size() for t in params.values()))


def _cohort(simulation: Simulation, rounds: np.ndarray) -> float:
    """Return how many clients take part in a round: the mean of some, or as their rates say."""
    schedule = simulation.schedule
    if schedule.timed:
        begin(schedule, 1, 0.0)  # the rounds that are measured have somebody, too
        return float(schedule.rates().sum())
    return float(np.mean([len(schedule.select(int(r))) for r in rounds]))


def _busy_round(simulation: Simulation) -> int:
    """Return the first round with participants, so that there is something to measure."""
    for server_round in range(1, min(simulation.settings.rounds, 1000) + 1):
        if len(simulation.schedule.select(server_round)):
            return server_round
    return 1


def _pace(loop: RoundLoop, replies: AdmittedReplies) -> str:
    if replies.gate is None or loop.meter is None:
        return ""
    slowest_s = max(loop.meter.footprint("train", replies)[SECONDS], default=0.0)
    return (
        f"of {replies.asked:,} asked, {len(replies.admitted):,} are used after "
        f"{replies.gate.closes:.3g} simulated seconds, where the slowest takes {slowest_s:.3g} "
        f"(round {replies.gate.server_round})"
    )


def _engine(simulation: Simulation) -> str:
    grid = simulation.grid
    plan_name, chunk = getattr(grid, "plan", None), getattr(grid, "chunk", None)
    name = type(grid).__name__.removesuffix("Grid")
    if plan_name is None:
        return name
    actors = getattr(grid, "actors", None)
    if actors is not None:
        return f"{name}: {plan_name}, up to {chunk} clients at once in each of {actors} actors"
    return f"{name}: {plan_name}, {chunk} clients at once"
