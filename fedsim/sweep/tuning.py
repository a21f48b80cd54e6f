"""What it costs to publish the best of a sweep, and not one run that was chosen blindly.

Every private run of a sweep looks at the same clients. Whoever publishes the best of N of them has
looked at N outputs; the epsilon of the one that is published is then too small.

What always holds is basic composition (Dwork et al. 2006): the sum of the epsilons at the sum of
the deltas of all runs. Less is enough where the number of runs is drawn at random beforehand, and
each run's setting at random from the grid (Papernot & Steinke, arXiv:2110.03620); that is for the
accountant of the privacy mechanism to say, which knows the events behind an epsilon. It is reached
through the scenario alone, as fedsim imports no mechanism: see `best_of`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.sweep.outcome import Epsilon
from fedsim.sweep.settings import SweepRun

BEST_OF = "best_of"
"""HOOK: the key of `privacy.json` under which a mechanism may give {number of runs: epsilon}.

The epsilon, at the run's own delta and terms, of the best of a number of runs that is drawn at
random with that mean. Until a mechanism fills it in, the sweep says "tuning not charged".
"""


@dataclass(frozen=True, kw_only=True)
class TuningCost:
    """The cost of choosing among private runs of one meaning.

    Attributes:
        runs: How many private runs there were to choose from: all that were started.
        single: The largest epsilon of one of them.
        composed: Their sum, at `composed_delta`: holds however the choice is made.
        composed_delta: The sum of their deltas.
        best_of: What the mechanism's accountant says, or None while it says nothing.
        best_of_runs: The mean number of runs that it is for.
    """

    runs: int
    single: Epsilon
    composed: float
    composed_delta: float
    best_of: float | None
    best_of_runs: int | None


def tuning_cost(runs: Sequence[SweepRun]) -> TuningCost | None:
    """Return what it costs to publish the best of some runs.

    Args:
        runs: All that have released anything, failed and stopped ones included, whose epsilons have
            the same terms. None of them may be left out because it is not the best.

    Returns:
        The cost; None where there is nothing to choose from.
    """
    costs = [run.outcome.epsilon for run in runs if run.outcome.epsilon is not None]
    if len(costs) < 2:
        return None
    tables = [best_of(run.outcome.privacy, len(costs)) for run in runs if run.outcome.epsilon]
    known = [table for table in tables if table is not None]
    worst = max(known, key=lambda table: table[1]) if len(known) == len(costs) else None
    return TuningCost(
        runs=len(costs),
        single=max(costs, key=lambda epsilon: epsilon.value),
        composed=math.fsum(epsilon.value for epsilon in costs),
        composed_delta=math.fsum(epsilon.delta for epsilon in costs),
        best_of=worst[1] if worst else None,
        best_of_runs=worst[0] if worst else None,
    )


def best_of(privacy: Mapping[str, Any], runs: int) -> tuple[int, float] | None:
    """Return (mean runs, epsilon) from `privacy.json`, for the least mean that is not below `runs`.

    Example:
        >>> best_of({"best_of": {"10": 2.5, "100": 3.5}}, runs=12)
        (100, 3.5)
    """
    table = privacy.get(BEST_OF)
    if not isinstance(table, Mapping):
        return None
    able = {
        int(count): float(value)
        for count, value in table.items()
        if str(count).isdigit()
        and int(count) >= runs
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
    return min(able.items()) if able else None


def describe(cost: TuningCost, *, searched: bool = False) -> str:
    """Return the cost in words, with everything that it depends on.

    Args:
        cost: What it is.
        searched: Whether later settings were chosen by the results of earlier runs. Then what an
            epsilon will be is itself chosen on the way, and a sum that is known only at the end is
            no guarantee at delta > 0, unless it stays under a bound that was set before: a privacy
            filter (Rogers et al. 2016, arXiv:1605.08294).
    """
    if searched:
        return (
            f"Each epsilon here is that of one run (at most {cost.single.value:.3g}; "
            f"{cost.single.meaning}), but settings were chosen by the results of the runs before, "
            f"stopped runs among them. All {cost.runs} private runs count: their sum is epsilon "
            f"{cost.composed:.3g} at delta {cost.composed_delta:.3g}, and holds as a guarantee "
            "where bounds at least that large were set before the search began (basic composition "
            "as a privacy filter, arXiv:1605.08294). Tuning not charged otherwise: the bound for "
            "settings drawn at random (arXiv:2110.03620) is not for a search that learns."
        )
    alone = (
        f"Each epsilon here is that of one run, chosen without looking at the others (at most "
        f"{cost.single.value:.3g}; {cost.single.meaning})."
    )
    composed = (
        f"Whoever publishes the best of the {cost.runs} private runs of this sweep has looked at "
        f"all of them: by basic composition, epsilon {cost.composed:.3g} at delta "
        f"{cost.composed_delta:.3g}, however the choice is made."
    )
    if cost.best_of is None:
        more = "Tuning not charged: no tighter bound is known for this mechanism."
    else:
        more = (
            f"Had the number of runs been drawn at random beforehand, with mean "
            f"{cost.best_of_runs}, and each setting at random from the grid, it would be epsilon "
            f"{cost.best_of:.3g} at delta {cost.single.delta:g} (arXiv:2110.03620); a grid that "
            "is run as a whole is not that."
        )
    return f"{alone} {composed} {more}"
