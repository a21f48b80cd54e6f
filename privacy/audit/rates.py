"""What membership inference shows: rates beside the claim's curve, in words, data and a picture."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from fedsim.auditing import Verdict
from privacy.audit.claim import Claim
from privacy.audit.membership import TruePositives, area, roc, true_positives
from privacy.audit.one_run import OneRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = (0.001, 0.01, 0.1)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack's curve over all targets.

    Attributes:
        name: For people.
        fpr_J, tpr_J: Its ROC curve.
        area: Under the curve; 0.5 for a guess.
        rates: At those of `RATES` that so many non-members can show.
    """

    name: str
    fpr_J: np.ndarray
    tpr_J: np.ndarray
    area: float
    rates: tuple[TruePositives, ...]

    @classmethod
    def of(cls, name: str, score_TN: np.ndarray, member_TN: np.ndarray) -> Attack:
        """Return the curve of scores of T targets, `[T, N]`, with one threshold for all of them."""
        fpr_J, tpr_J = roc(score_TN.ravel(), member_TN.ravel())
        others = int((~member_TN).sum())
        return cls(
            name=name,
            fpr_J=fpr_J,
            tpr_J=tpr_J,
            area=area(fpr_J, tpr_J),
            rates=tuple(
                rate_over_targets(score_TN, member_TN, rate) for rate in RATES if rate * others >= 1
            ),
        )


def rate_over_targets(
    score_TN: np.ndarray, member_TN: np.ndarray, fpr: float, *, confidence: float = 0.95
) -> TruePositives:
    """Return the true positive rate at one threshold for all targets, and its interval.

    The targets' rates are taken as independent draws of one normal (Student's t), which covers what
    samples of one target have in common; of a single target, the samples are taken as independent.
    """
    pooled = true_positives(score_TN.ravel(), member_TN.ravel(), fpr, confidence=confidence)
    count = len(score_TN)
    if count == 1:
        return pooled
    # The threshold is that of the pooled rate: as many members are above it.
    inside = np.sort(score_TN[member_TN])[::-1]
    found = round(pooled.tpr * len(inside))
    above_TN = score_TN >= inside[found - 1] if found else np.zeros_like(member_TN)
    tpr_T = (above_TN & member_TN).sum(axis=1) / np.maximum(member_TN.sum(axis=1), 1)
    half = student.ppf((1 + confidence) / 2, count - 1) * tpr_T.std(ddof=1) / np.sqrt(count)
    return dataclasses.replace(
        pooled,
        low=min(pooled.tpr, max(0.0, float(tpr_T.mean() - half))),
        high=max(pooled.tpr, min(1.0, float(tpr_T.mean() + half))),
    )


@dataclass(frozen=True, kw_only=True)
class MembershipFindings:
    """A claim, and what membership inference says of it.

    Attributes:
        claim: What the ledger allows; None where nothing is claimed.
        found: The lower bounds of the first r guesses.
        refuted: Whether the claim's curve is rejected.
        attacks: Their curves; the first is the one that is tested.
        client: Who is attacked.
        rounds: In how many rounds it took part.
        shadows: How many shadow models there were.
    """

    claim: Claim | None
    found: OneRun
    refuted: bool
    attacks: tuple[Attack, ...]
    client: int
    rounds: int
    shadows: int

    def verdict(self) -> Verdict:
        """Return all of it."""
        return Verdict(
            refuted=self.refuted, words=self.words(), values=self.values(), picture=self.picture()
        )

    def words(self) -> tuple[str, ...]:
        """Return the finding, one line each."""
        found = self.found
        return (
            self._first(),
            *(self._rates(attack) for attack in self.attacks),
            f"of the {found.guesses} samples that look most like members (LiRA), {found.correct} "
            f"are: ε > {found.epsilon_gdp:.3f} at δ {found.delta:.1e} if the trade-off is a "
            f"Gaussian's (f-DP), ε > {found.epsilon_steinke:.3f} for any mechanism (Steinke)",
            f"claimed: {self.claim.statement}" if self.claim else "claimed: nothing",
            f"adversary: sees what client {self.client} gets and sends in its {self.rounds} rounds;"
            f" knows its {found.canaries} candidate samples (of all targets), each in by a fair "
            f"coin; trains {self.shadows} shadow models",
        )

    def _first(self) -> str:
        found = self.found
        if self.claim is None:
            return "the run claims no privacy: this is what membership inference finds in it"
        claim = f"the claim of {self.claim.statement.short()}"
        if self.refuted:
            return (
                f"{claim} is REFUTED at {found.confidence:.0%} confidence: more members are found "
                "than its ledger allows"
            )
        return (
            f"{claim} stands: membership inference does not refute it at {found.confidence:.0%} "
            "confidence (real samples give away less than worst-case ones: audit=canaries)"
        )

    def _rates(self, attack: Attack) -> str:
        rates = []
        for rate in attack.rates:
            allowed = f", allowed {most:.2%}" if (most := self._allowed(rate.fpr)) else ""
            interval = f"{rate.low:.2%} to {rate.high:.2%}"
            rates.append(f"{rate.tpr:.2%} ({interval}{allowed}) at FPR {rate.fpr:.1%}")
        return f"{attack.name}: TPR {'; '.join(rates)}; area under ROC {attack.area:.3f}"

    def _allowed(self, fpr: float) -> float | None:
        return None if self.claim is None else float(self.claim.tpr(np.array([fpr]))[0])

    def values(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "claim": self.claim.statement.to_json() if self.claim else None,
            "client": self.client,
            "rounds": self.rounds,
            "bounds": dataclasses.asdict(self.found),
            "attacks": {
                attack.name: {
                    "area_under_roc": attack.area,
                    "true_positives": [
                        {**dataclasses.asdict(rate), "allowed": self._allowed(rate.fpr)}
                        for rate in attack.rates
                    ],
                }
                for attack in self.attacks
            },
        }

    def picture(self) -> bytes:
        """Return a PNG: ROC curves below the one allowed, on logarithms."""
        from matplotlib.figure import Figure

        from fedsim.report.figures import HALF, style

        buffer = io.BytesIO()
        with style():
            figure = Figure(figsize=(HALF, 4.2), layout="constrained", facecolor="white")
            self._draw(figure.subplots())
            figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def _draw(self, axes: Axes) -> None:
        from fedsim.report.figures import BLUE, GREY, ORANGE, VERMILLION

        lowest = 2 / self.found.canaries
        grid_F = np.geomspace(lowest, 1, 200)
        if self.claim is not None:
            allowed_F = self.claim.tpr(grid_F)
            axes.plot(grid_F, allowed_F, color=VERMILLION, linestyle="--", label="claimed at most")
        for attack, colour in zip(self.attacks, (BLUE, ORANGE), strict=True):
            axes.step(
                attack.fpr_J.clip(lowest),
                attack.tpr_J.clip(lowest),
                where="post",
                color=colour,
                label=f"{attack.name} ({attack.area:.3f})",
            )
            for rate in attack.rates:
                limits = [max(rate.low, lowest), max(rate.high, lowest)]
                axes.plot([rate.fpr] * 2, limits, color=colour, linewidth=3, alpha=0.5)
        axes.plot(grid_F, grid_F, color=GREY, linestyle=":", label="guessing (0.5)")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")  # powers would be mathematics, which is off
        axes.set_xlim(lowest, 1)
        axes.set_ylim(lowest, 1.1)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_title("Members found" + (": claim refuted" if self.refuted else ""))
        axes.legend(loc="lower right")
