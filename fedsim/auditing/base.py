"""The contract of an audit: it plants canaries in a run, or just watches it, and judges its claim.

An audit is no part of a scenario: a scenario is what is audited. So `audit` is a group of parts
that only `fedsim audit` reads, and no run's configuration holds one.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.parts import Part
from fedsim.protection.base import Line, Protection
from fedsim.records import Params

if TYPE_CHECKING:
    from fedsim.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit found.

    Attributes:
        refuted: Whether the claim cannot be true, at the audit's confidence.
        words: The finding, one line each.
        values: All of it as plain data, for `audit.json`.
        picture: A PNG: what was found, beside what is claimed.
    """

    refuted: bool
    words: tuple[str, ...]
    values: dict[str, Any]
    picture: bytes


class Audit(abc.ABC):
    """One audit of one run.

    Attributes:
        protection: The run's mechanism, with the canaries planted in it or watched, in its place.
    """

    protection: Protection

    @abc.abstractmethod
    def planted(self) -> dict[str, Any]:
        """Return as plain data what was drawn before the run: canaries, coins, who is attacked."""

    @abc.abstractmethod
    def conclude(self, initial: Params, final: Params, ledger: Sequence[Line]) -> Verdict:
        """Judge the claim.

        Args:
            initial: The model before the first round.
            final: The model after the last.
            ledger: All lines of the run's ledger.
        """


class AuditPart(Part, abc.ABC):
    """An audit, as the `audit` group names it."""

    @abc.abstractmethod
    def plant(self, simulation: Simulation, inner: Protection) -> Audit:
        """Draw what the audit needs, and put it into a run's mechanism.

        Args:
            simulation: The run, before its client side is built.
            inner: Its mechanism.

        Raises:
            ConfigError: This audit cannot judge this run; the message says which could.
        """
