"""The privacy statement: an epsilon with everything without which it means nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Relation = Literal["add_remove", "replace_one"]
"""Neighbouring data sets differ by one unit's presence, or by one unit's value."""

_WORDS = {"add_remove": "adding or removing one", "replace_one": "replacing one"}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What may be claimed of a run's privacy.

    Attributes:
        mechanism: What protects, in a few words; "none" where nothing does.
        epsilon: The upper bound; infinite where there is none.
        delta: Of (epsilon, delta).
        unit: Whose presence is hidden: `example`, `user`, `label`, `report`.
        relation: Which data sets are neighbours.
        sampling: How units are drawn.
        accountant: What computed epsilon.
        trust: Who sees what, and is trusted not to use it.
        noise: Where the noise comes from.
        notes: What the claim does not cover, each a sentence.
        best_of: Mean number of runs -> epsilon of publishing only the best of so many, their number
            drawn at random (geometric): what a sweep costs beyond one run.
    """

    mechanism: str
    epsilon: float = float("inf")
    delta: float = 0.0
    unit: str = ""
    relation: Relation = "add_remove"
    sampling: str = ""
    accountant: str = ""
    trust: str = ""
    noise: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)
    best_of: Mapping[int, float] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Whether anything is claimed."""
        return self.mechanism != "none"

    def short(self) -> str:
        """Return the claim in one line, as progress and tables show it."""
        if not self.private:
            return "none"
        if math.isinf(self.epsilon):
            return "nothing claimed"
        return self.at(self.epsilon)

    def at(self, epsilon: float, sign: str = "") -> str:
        """Return an epsilon with everything without which it means nothing, in a few words."""
        relation = {"add_remove": "add/remove", "replace_one": "replace one"}[self.relation]
        return f"ε {sign}{epsilon:.3f} at δ {self.delta:.1e} per {self.unit} ({relation})"

    def __str__(self) -> str:
        if not self.private:
            return (
                "none: no privacy mechanism; every update reveals what its samples reveal"
                + "".join(f". {note}" for note in self.notes)
            )
        if math.isinf(self.epsilon):
            claim = f"nothing is claimed, though there is {self.mechanism}"
            return ". ".join([claim, *self.notes])
        claim = (
            f"({self.epsilon:.4g}, {self.delta:.2g})-differential privacy per {self.unit}, "
            f"against {_WORDS[self.relation]} {self.unit}, by {self.mechanism}; "
            f"{self.sampling}; accountant: {self.accountant}; trust: {self.trust}; "
            f"noise: {self.noise}"
        )
        return ". ".join([claim, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data, with the sentence; an infinite epsilon becomes null."""
        values = asdict(self)
        values["epsilon"] = self.epsilon if self.private and self.epsilon < float("inf") else None
        best_of = {str(runs): value for runs, value in self.best_of.items()}
        return {**values, "notes": list(self.notes), "best_of": best_of, "statement": str(self)}


def short_of(values: Mapping[str, Any]) -> str:
    """Return `Statement.short` of what `to_json` returned."""
    names = Statement.__dataclass_fields__
    known = {name: value for name, value in values.items() if name in names}
    if known.get("epsilon") is None:
        known["epsilon"] = float("inf")
    return Statement(**{**known, "notes": tuple(known.get("notes", ()))}).short()
