"""What a pace that does not wait for everybody goes with."""

from __future__ import annotations

from collections.abc import Callable

from flwr.serverapp.strategy import Strategy

from fedsim.asynchronous import AsynchronousStrategy
from fedsim.errors import ConfigError
from fedsim.pace.base import Hurried
from fedsim.query import QueryStrategy
from fedsim.strategy import FedsimStrategy
from fedsim.topology.base import TopologyKind

_OWN = ("client_payload", "evaluation_payload", "upload_like")
"""What strategies override that keep something for each client, or are sent more than models."""


def check_pace(
    pace: Hurried,
    *,
    strategy: Strategy,
    measured: bool,
    private: bool,
    deployed: bool,
    topology: TopologyKind,
    decomposed: bool,
    target: Callable[[str], str],
) -> None:
    """Check that who is late can be told in a run, and that late replies mean something there.

    Args:
        pace: Any but the one that waits.
        strategy: The run's.
        measured: Whether the scenario has devices.
        private: Whether it has a privacy mechanism.
        deployed: Whether its clients are real devices.
        topology: Its kind.
        decomposed: Whether the loss terms of a round's participants are recorded.
        target: Gives the `_target_` of a group's part.

    Raises:
        ConfigError: One of these does not hold; says what would do.
    """
    this, name = f"pace={target('pace')}", f"strategy {target('strategy')}"
    if isinstance(strategy, AsynchronousStrategy):
        raise ConfigError(
            f"{this}: {name} has no exchanges to close, since its server waits for nobody; set "
            "pace=patient, or strategy=fedavg"
        )
    if isinstance(strategy, QueryStrategy):
        raise ConfigError(
            f"{this}: {name} asks questions, and how long clients take to answer is not known; "
            "set pace=patient"
        )
    if topology == "peer":
        raise ConfigError(
            f"{this}: on topology={target('topology')} there is no server whose exchanges would "
            "close; set pace=patient, or topology=star with another strategy"
        )
    if private:
        raise ConfigError(
            f"privacy={target('privacy')}: takes those who are asked in a round for those whose "
            f"replies it uses; with {this} they are others, and who is in time depends on how many "
            "samples a client holds, which is private; set privacy=none, or pace=patient"
        )
    if deployed:
        raise ConfigError(
            f"{this}: is of simulated time, and on real devices time is real; set pace=patient "
            "and admission.timeout_s, after which replies are lost"
        )
    if not measured:
        raise ConfigError(
            f"{this}: who is late is told by the clients' devices, and the scenario has none; set "
            "devices=unequal (or equal)"
        )
    if pace.late == "keep":
        _check_keeping(pace, this, name, strategy, decomposed)


def _check_keeping(
    pace: Hurried, this: str, name: str, strategy: Strategy, decomposed: bool
) -> None:
    kept = f"{this} with late=keep: "
    plain = (
        isinstance(strategy, FedsimStrategy)
        and strategy.of_mean_only
        and strategy.sends_model
        and not strategy.client_half.overrides("upload")
        and not strategy.client_half.personal
        and all(getattr(type(strategy), own) is getattr(FedsimStrategy, own) for own in _OWN)
    )
    if not plain:
        raise ConfigError(
            f"{kept}a later round's model is made of late replies, too, and {name} is none of "
            "those whose model depends on the weighted mean of the updates alone; use "
            "pace.late=drop, or strategy=fedavg"
        )
    if decomposed:
        raise ConfigError(
            f"{kept}the loss terms are of a round's participants, and late updates are of earlier "
            "ones; set evaluation.decomposition=false, or pace.late=drop"
        )
