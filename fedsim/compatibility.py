"""Which parts of a scenario go together, and what is said of those that do not.

Each part checks itself when it is made. What is here needs two of them, and is checked before a run
begins. Each function raises `ConfigError`, which says what is meant, and what to type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.serverapp.strategy import Strategy

from fedsim.asynchronous import AsynchronousStrategy
from fedsim.engines.base import LocalGrid
from fedsim.errors import ConfigError
from fedsim.protection.base import NoPrivacy
from fedsim.query import check_scenario
from fedsim.strategy import FedsimStrategy
from fedsim.topology.base import TYPE, TopologyPart

if TYPE_CHECKING:
    from fedsim.simulation import Simulation


def check_parts(simulation: Simulation) -> None:
    """Make all parts but what runs the clients, and check those that need others."""
    rules = simulation.settings.evaluation
    if rules.clients != "none" and not simulation.partition_part.holdout:
        raise ConfigError(
            f"evaluation.clients={rules.clients}: clients have no samples to evaluate on; "
            "set partition.holdout, e.g. partition.holdout=0.2"
        )
    for part in ("runtime", "topology", "pace"):
        getattr(simulation, part)
    if simulation.topology.kind != "star":  # a star of millions would be made for nothing
        simulation.graph  # noqa: B018
    if isinstance(simulation.strategy, AsynchronousStrategy):
        _check_asynchronous(simulation)
    if simulation.compressor is not None:
        _check_compression(simulation)
    if simulation.schedule.timed:
        _check_timed(simulation)
    if simulation.asking is not None:
        attackers = simulation.attackers
        check_scenario(
            simulation.asking,
            rounds=None if simulation.smoke else simulation.settings.rounds,
            settings=rules,
            holdout=simulation.partition_part.holdout,
            attacked=attackers.tamper is not None or attackers.targets is not None,
        )


def check_topology(simulation: Simulation, part: TopologyPart, strategy: Strategy) -> None:
    """Check that a strategy can run on a kind of topology."""
    kinds = FedsimStrategy.topologies
    if isinstance(strategy, FedsimStrategy):
        kinds = strategy.topologies
    if part.kind not in kinds:
        fitting = " or ".join(TYPE[kind] for kind in TYPE if kind in kinds)
        raise ConfigError(
            f"topology={simulation.target('topology')}: strategy {simulation.target('strategy')} "
            f"cannot run on a topology of kind '{part.kind}'; set {fitting}, or another strategy, "
            "as fedsim list strategy says them"
        )


def check_answers(simulation: Simulation) -> None:
    """Check that a mechanism protects answers, where clients give these."""
    if simulation.asking is not None and not simulation.privacy_part.protects_answers:
        raise ConfigError(
            f"privacy={simulation.target('privacy')}: protects what comes of training, and "
            f"strategy {simulation.target('strategy')} trains nothing; use privacy=none, or a "
            "mechanism that is made for the strategy"
        )


def _check_asynchronous(simulation: Simulation) -> None:
    """Check that replies of other rounds may make a model."""
    name = simulation.target("strategy")
    if simulation.meter is None:
        raise ConfigError(
            f"strategy {name}: replies are used in the order in which they arrive on the "
            "clients' devices, and the scenario has none; set devices=unequal (or equal)"
        )
    if not isinstance(simulation.privacy_part, NoPrivacy):
        raise ConfigError(
            f"privacy={simulation.target('privacy')}: takes those who are asked in a round for "
            f"those whose replies it uses, and with strategy {name} they are others; set "
            "privacy=none, or strategy=fedavg"
        )
    if simulation.settings.evaluation.decomposition:
        raise ConfigError(
            "evaluation.decomposition=true: the loss terms are of the round's participants, "
            f"and with strategy {name} a model is made of earlier ones' replies; set "
            "evaluation.decomposition=false"
        )


def _check_compression(simulation: Simulation) -> None:
    """Check that what clients send may be encoded."""
    half = simulation.runtime.half
    what, strategy = f"compression={simulation.target('compression')}", simulation.strategy
    whole = half.overrides("begin") or half.overrides("run")
    if isinstance(strategy, FedsimStrategy):
        other = type(strategy).expected_arrays is not FedsimStrategy.expected_arrays
        whole = whole or other or not strategy.sends_model
    if whole:
        raise ConfigError(
            f"{what}: encodes what training has changed of the model that all were sent, and "
            f"clients of strategy {simulation.target('strategy')} start from, or send, something "
            "else; set compression=none, or another strategy, e.g. strategy=fedavg"
        )
    if not simulation.privacy_part.releases_on_client:
        raise ConfigError(
            f"{what}: privacy={simulation.target('privacy')} accounts for the updates as clients "
            "make them, and not for what encoding makes of these; set compression=none, or a "
            "mechanism whose noise clients add themselves, e.g. privacy=local_dp or dp_sgd"
        )
    if simulation.plant is not None:
        raise ConfigError(
            f"{what}: an audit looks at what clients would send before it is encoded, of which "
            "less leaves them; set compression=none, whose claim is the same"
        )
    if simulation.attackers.tamper is not None:
        raise ConfigError(
            f"{what}: attack={simulation.target('attack')} forges models, and what clients send "
            "are encoded updates; set compression=none, or an attack on data, e.g. "
            "attack=label_flip"
        )


def check_decomposition(simulation: Simulation) -> None:
    """Check that the loss terms of a round's participants can be computed."""
    if simulation.protection.planned().private:
        raise ConfigError(
            "evaluation.decomposition=true: the loss terms are computed from every "
            f"participant's training data, which privacy={simulation.target('privacy')} does not "
            "cover; set evaluation.decomposition=false"
        )
    if simulation.dataset.bags is not None:
        raise ConfigError(
            "evaluation.decomposition=true: the loss terms need each training sample's own "
            "response, and with bags only means are known; set evaluation.decomposition=false"
        )
    if not isinstance(simulation.grid, LocalGrid):
        engine = simulation.target("engine")
        raise ConfigError(
            "evaluation.decomposition=true: the loss terms need every participant's training "
            f"data in this process, and with engine {engine} they are elsewhere; use "
            "engine=cohort or engine=in_process, or set evaluation.decomposition=false"
        )


def _check_timed(simulation: Simulation) -> None:
    """Check that who takes part may depend on the simulated time."""
    name = simulation.target("participation")
    if simulation.meter is None:
        raise ConfigError(
            f"participation={name}: who is there depends on the simulated time, which passes "
            "on the clients' devices, and the scenario has none; set devices=unequal (or equal)"
        )
    if simulation.asking is not None:
        raise ConfigError(
            f"participation={name}: who is there depends on the simulated time, which is not "
            f"told where clients answer questions ({simulation.target('strategy')}); use "
            "participation=uniform, bernoulli or full"
        )
    if not isinstance(simulation.privacy_part, NoPrivacy):
        raise ConfigError(
            f"participation={name}: who takes part depends on how long others are busy, hence "
            f"on how much they hold, which privacy={simulation.target('privacy')} does not account "
            "for; use participation=bernoulli, uniform or full, or privacy=none"
        )
