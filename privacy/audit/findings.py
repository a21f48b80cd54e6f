"""What an audit of canaries shows: in words, as data, and as a picture beside the claim."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.auditing import Verdict
from privacy.audit.claim import Claim
from privacy.audit.membership import area, roc, true_positives
from privacy.audit.one_run import OneRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RATES = (0.001, 0.01, 0.1)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A claim, and what the canaries say of it.

    Attributes:
        claim: What the ledger allows.
        found: The lower bounds.
        refuted: Whether the claim's curve is rejected.
        score_M, included_M: The canaries' scores and coins.
        threat: The adversary, in words.
    """

    claim: Claim
    found: OneRun
    refuted: bool
    score_M: np.ndarray
    included_M: np.ndarray
    threat: str

    def verdict(self) -> Verdict:
        """Return all of it."""
        return Verdict(
            refuted=self.refuted, words=self.words(), values=self.values(), picture=self.picture()
        )

    def words(self) -> tuple[str, ...]:
        """Return the finding, one line each."""
        statement, found = self.claim.statement, self.found
        claim = f"the claim of {statement.short()}"
        first = (
            f"{claim} is REFUTED at {found.confidence:.0%} confidence: the run is less private "
            "than its ledger says"
            if self.refuted
            else f"{claim} stands: {found.canaries} canaries do not refute it at "
            f"{found.confidence:.0%} confidence"
        )
        return (
            first,
            f"right guesses: {found.correct} of {found.guesses}, on {found.canaries} canaries",
            f"lower bounds at δ {found.delta:.1e}: ε > {found.epsilon_gdp:.3f} if the trade-off is "
            f"a Gaussian's (f-DP), ε > {found.epsilon_steinke:.3f} for any mechanism (Steinke)",
            f"claimed: {statement}",
            f"adversary: {self.threat}",
        )

    def values(self) -> dict[str, Any]:
        """Return plain data."""
        fpr_T, tpr_T = roc(self.score_M, self.included_M)
        others = int((~self.included_M).sum())
        rates = [rate for rate in _RATES if rate * others >= 1]
        allowed = self.claim.tpr(np.array(rates)).tolist() if rates else []
        return {
            "claim": self.claim.statement.to_json(),
            "threat": self.threat,
            "bounds": dataclasses.asdict(self.found),
            "true_positives": [
                {
                    **dataclasses.asdict(true_positives(self.score_M, self.included_M, rate)),
                    "allowed": most,
                }
                for rate, most in zip(rates, allowed, strict=True)
            ],
            "area_under_roc": area(fpr_T, tpr_T),
            "scores": self.score_M.tolist(),
            "included": self.included_M.astype(int).tolist(),
        }

    def picture(self) -> bytes:
        """Return a PNG: bounds beside the claim, and the ROC curve below the one allowed."""
        from matplotlib.figure import Figure

        from fedsim.report.figures import FULL, style

        buffer = io.BytesIO()
        with style():
            figure = Figure(figsize=(FULL, 3.4), layout="constrained", facecolor="white")
            left, right = figure.subplots(1, 2)
            self._bounds(left)
            self._roc(right)
            figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def _bounds(self, axes: Axes) -> None:
        from fedsim.report.figures import BLUE, ORANGE, VERMILLION

        statement, found = self.claim.statement, self.found
        names = ["any mechanism\n(Steinke et al.)", "Gaussian trade-off\n(f-DP)"]
        bars = axes.barh(
            names, [found.epsilon_steinke, found.epsilon_gdp], color=[ORANGE, BLUE], height=0.5
        )
        axes.bar_label(bars, fmt="%.2f", padding=3)
        if np.isfinite(statement.epsilon):
            axes.axvline(statement.epsilon, color=VERMILLION, linestyle="--", label="claimed ε")
            axes.legend(loc="center right")
        axes.set_xlim(0, 1.15 * max(1e-3, found.epsilon_gdp, min(statement.epsilon, 1e3)))
        axes.set_xlabel(f"ε at δ = {found.delta:.0e}, {found.confidence:.0%} confidence")
        axes.set_title("Lower bounds" + (": claim refuted" if self.refuted else ""))

    def _roc(self, axes: Axes) -> None:
        from fedsim.report.figures import BLUE, GREY, VERMILLION

        fpr_T, tpr_T = roc(self.score_M, self.included_M)
        grid_F = np.geomspace(1 / len(self.score_M), 1, 200)
        axes.plot(grid_F, self.claim.tpr(grid_F), color=VERMILLION, linestyle="--", label="claimed")
        axes.step(fpr_T, tpr_T, where="post", color=BLUE, label="canaries")
        axes.plot(grid_F, grid_F, color=GREY, linestyle=":", label="guessing")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # powers would be mathematics, which is off
        axes.set_xlim(grid_F[0], 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_title("Canaries found")
        axes.legend(loc="upper left")
