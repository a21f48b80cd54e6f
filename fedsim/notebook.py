"""Runs from Python: `fedsim.run("quickstart", overrides=[...])`, for notebooks and scripts.

    run = fedsim.run("quickstart", overrides=["strategy=fedau", "rounds=20"])
    run.metrics["central.accuracy"]       # a NumPy column, one value per round
    run.model                             # the trained torch module
    run.privacy                           # an epsilon with everything that it means nothing without
    run.plot_curves()                     # a matplotlib figure

A `Run` is what a run folder holds: `fedsim.load(path)` gives the same for any run on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from fedsim import lifecycle
from fedsim.compare import pictures
from fedsim.compare.members import Comparison, compare
from fedsim.compare.pictures import Picture
from fedsim.config import Config, compose
from fedsim.drive import drive
from fedsim.errors import ConfigError, ResumeError
from fedsim.progress import Display, display
from fedsim.report import figures
from fedsim.report.measures import headline
from fedsim.report.round_columns import GROUPS
from fedsim.report.run_folder import RunData
from fedsim.results import MODEL, RunFolder
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke


class _Silent(Display):
    def show(self, report: RoundReport, last_round: int) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What may be claimed of a run's privacy; printed, it is the whole statement.

    Attributes:
        statement: In words.
        epsilon, delta, unit, relation, sampling, accountant, trust: Its terms; epsilon is None
            where nothing is claimed.
    """

    statement: str
    epsilon: float | None
    delta: float
    unit: str
    relation: str
    sampling: str
    accountant: str
    trust: str

    def __str__(self) -> str:
        return self.statement

    __repr__ = __str__


class Run:
    """A run that was made, read from its folder.

    Args:
        path: A run folder.

    Raises:
        ResumeError: It is not one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = RunFolder.open(Path(path)).path

    @cached_property
    def data(self) -> RunData:
        """Everything that its report shows."""
        return RunData.read(self.path)

    @cached_property
    def config(self) -> Config:
        """The scenario as it was composed and checked."""
        return RunFolder.open(self.path).config()

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """Columns, one value per round each, NaN where a round did not measure it.

        `round`, `asked`, `admitted`, `rejected`, `seconds`; `<group>.<metric>` such as
        `central.accuracy`, `train.train-loss`; of the clients' own metrics, each counted once,
        `per-client.<metric>.mean`, `.p10` and `.p90`.
        """
        rounds = self.data.rounds
        columns: dict[str, np.ndarray] = {
            "round": rounds.round_R,
            "asked": rounds.asked_R,
            "admitted": rounds.admitted_R,
            "rejected": rounds.rejected_R,
            "seconds": rounds.seconds_R,
        }

        def spread_out(round_M: np.ndarray, value_M: np.ndarray) -> np.ndarray:
            column = np.full(len(rounds.round_R), np.nan)
            column[np.searchsorted(rounds.round_R, round_M)] = value_M
            return column

        for group in GROUPS:
            for name, series in rounds.metrics[group].items():
                columns[f"{group}.{name}"] = spread_out(series.round_M, series.value_M)
        for name, spread in rounds.spread.items():
            for part, value_M in (
                ("mean", spread.mean_M),
                ("p10", spread.low_M),
                ("p90", spread.high_M),
            ):
                columns[f"per-client.{name}.{part}"] = spread_out(spread.round_M, value_M)
        return columns

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """The final model's tensors, by name.

        Raises:
            ResumeError: The run has not ended.
        """
        from safetensors.torch import load_file

        if not (self.path / MODEL).is_file():
            raise ResumeError(
                f"{self.path} has no {MODEL}: the run has not ended; go on with fedsim resume"
            )
        return dict(load_file(self.path / MODEL))

    @cached_property
    def model(self) -> nn.Module:
        """The final model, in evaluation mode on the CPU; built as the scenario builds it."""
        with closing(Simulation(self.config)) as simulation:
            model = simulation.model.to("cpu")
        missing, unknown = model.load_state_dict(self.params, strict=False)
        if unknown or [name for name in missing if name in dict(model.named_parameters())]:
            raise ResumeError(
                f"{self.path / MODEL} is of another model than the scenario builds; was the code "
                "changed?"
            )
        return model.eval()

    @property
    def privacy(self) -> Claim:
        """What may be claimed: as spent if the run has ended, else as planned."""
        told: Mapping[str, Any] = self.data.summary.get("privacy") or {}
        if not told:
            from fedsim.sweep.outcome import read_json

            told = read_json(self.path / "privacy.json")
        words = ("unit", "relation", "sampling", "accountant", "trust")
        return Claim(
            statement=str(told.get("statement", "nothing was said of this run's privacy")),
            epsilon=told.get("epsilon"),
            delta=float(told.get("delta", 0.0)),
            **{word: str(told.get(word, "")) for word in words},
        )

    @property
    def report(self) -> Path:
        """The page that shows it all."""
        return self.path / "report.html"

    def plot_curves(self, *others: Run, metric: str | None = None) -> Figure:
        """Return a metric by round, of this run and others; runs that differ in seed are a band.

        Args:
            others: Further runs.
            metric: As in `metrics`, e.g. `central.loss`; by default the headline.

        Raises:
            ConfigError: No run has measured it.
        """
        head = headline(self.data.rounds)
        group, _, name = (metric or "").partition(".")
        if metric is None and head is not None:
            group, name = head.group, head.name

        def make(comparison: Comparison) -> Picture | None:
            return pictures.curves(comparison, group, name, by="round")

        drawn = self._picture(others, make) if group in GROUPS and name else None
        if drawn is None:
            known = [key for key in self.metrics if key.partition(".")[0] in GROUPS]
            raise ConfigError(f"metric: {metric!r} was not measured; there are: {', '.join(known)}")
        return drawn

    def plot_fairness(self, *others: Run, metric: str = "accuracy") -> Figure:
        """Return the spread of the clients' own metric, where they evaluated it.

        Raises:
            ConfigError: They did not.
        """
        drawn = self._picture(others, lambda c: pictures.evenness(c, metric))
        if drawn is None:
            raise ConfigError(
                f"metric: clients have not evaluated {metric!r}; set evaluation.clients=all and "
                "partition.holdout=0.2"
            )
        return drawn

    def plot_participation(self, *others: Run) -> Figure:
        """Return who took part in which round."""
        drawn = self._picture(others, pictures.participation)
        if drawn is None:
            raise ConfigError(f"{self.path}: no round of training has ended yet")
        return drawn

    def plot_holdings(self, *others: Run) -> Figure:
        """Return who holds which classes."""
        drawn = self._picture(others, pictures.holdings)
        if drawn is None:
            raise ConfigError(f"{self.path}: the partition was not written")
        return drawn

    def _picture(
        self, others: Sequence[Run], make: Callable[[Comparison], Picture | None]
    ) -> Figure | None:
        picture = make(compare([self.path, *(other.path for other in others)]))
        return None if picture is None else figures.drawn(picture.size, picture.draw)

    def __repr__(self) -> str:
        head = headline(self.data.rounds)
        figure = f", {head.group} {head.name} {head.final:.4g}" if head else ""
        return f"Run({str(self.path)!r}: {self.data.rounds.last} rounds{figure})"


def run(
    scenario: str,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    progress: bool = True,
) -> Run:
    """Run a scenario to its end, as `fedsim run` does; return what it left behind.

    Args:
        scenario: The name of a scenario, or the path of a YAML file.
        overrides: In Hydra's grammar, e.g. `["strategy=fedau", "client.lr=0.05"]`.
        smoke: One round, two clients, one batch.
        progress: Show rounds as they end.

    Raises:
        ConfigError: The scenario or an override is wrong; the message says what to write.
        BudgetError: The privacy budget is spent; the model so far is in the run's folder.
    """
    config = compose(scenario, [str(word) for word in overrides])
    with closing(Simulation(config, Smoke() if smoke else None)) as simulation:
        simulation.loop  # noqa: B018  build and check everything before a folder is made
        folder = RunFolder.create(config, smoke=smoke)
        started = lifecycle.Run(simulation=simulation, folder=folder)
        drive(started, display() if progress else _Silent(), resume=False)
    return Run(folder.path)


def load(path: Path | str) -> Run:
    """Return a run from its folder.

    Raises:
        ResumeError: It is not a run folder.
    """
    return Run(path)
