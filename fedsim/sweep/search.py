"""A sweep whose points are drawn as it goes on: Optuna's ask and tell, for (utility, epsilon).

Private scenarios are searched for both at once, a Pareto front; others for utility alone. Points
are those of any sweep: same folders, same table, same resume. Optuna's journal lies beside them,
in the sweep folder, so a search that was killed goes on: what had been asked for is run to its end,
and each trial's sampler is seeded by (seed, number of the trial) alone. With one run at once
(`--jobs 1`) the same command draws the same points, killed or not; with more, what a trial knows of
the others depends on which have ended by then.

A trial stands for a point, by the hash of its configuration. If that has been run already, here or
by an earlier sweep of the same name, its result is told and nothing is run.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config import Config, compose
from fedsim.config.composition import Loaded
from fedsim.errors import ConfigError, ResumeError
from fedsim.files import sha256, write_atomic
from fedsim.simulation import Simulation
from fedsim.sweep import folder as states
from fedsim.sweep.folder import DONE, Entry, SweepFolder
from fedsim.sweep.grid import check
from fedsim.sweep.outcome import read_outcome
from fedsim.sweep.processes import Pool
from fedsim.sweep.pruning import Curve, Goal, Rule, kind_of, read_curve, write_finished
from fedsim.sweep.runner import Loop
from fedsim.sweep.space import Dimension, Drawn, parse
from fedsim.sweep.table import Display, Row

JOURNAL, RIVALS = "optuna.jsonl", "finished.json"
INSTALL = "pip install -c constraints.txt -e '.[search]'"
MOST_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search is, apart from how far it has come.

    Attributes:
        words: As typed.
        trials: How many points are drawn; points drawn twice count twice.
        metric: `NAME`, `NAME:min` or `NAME:max`; None for the headline of the runs.
        warmup: Rounds before which no run is stopped; None: a quarter of its rounds; 0 or less
            never stops one.
        sampler_seed: Of the sampler.
        private: Whether epsilon is the second objective.
    """

    words: tuple[str, ...]
    trials: int
    metric: str | None = None
    warmup: int | None = None
    sampler_seed: int = 0
    private: bool = False

    @property
    def goal(self) -> Goal:
        """The utility.

        Raises:
            ConfigError: The direction is none.
        """
        if self.metric is None:
            return Goal()
        name, colon, way = self.metric.partition(":")
        if not name or (colon and way not in ("min", "max")):
            raise ConfigError(
                f"--metric {self.metric!r}: expected NAME, NAME:min or NAME:max, e.g. accuracy:max"
            )
        return Goal(metric=name, lowest=way == "min" if colon else None)

    def rounds_before(self, rounds: int) -> int:
        """Return the first round at which a run may be stopped; its last one for none."""
        if self.warmup is None:
            return max(1, math.ceil(rounds / 4))
        return self.warmup if self.warmup > 0 else rounds


def start(words: Sequence[str], search: Search) -> tuple[list[Config], dict[str, Any]]:
    """Check a search before anything of it is written.

    Returns:
        Configurations at the corners of its space, and what `sweep.yaml` is to hold.

    Raises:
        ConfigError: Optuna is not installed, or something about the search is wrong.
    """
    require_optuna()
    space = parse(words)
    if not 1 <= search.trials <= MOST_TRIALS:
        raise ConfigError(f"--search {search.trials}: expected 1 to {MOST_TRIALS:,} points")
    _ = search.goal
    configs = check(space.corners())
    what = [*sorted(words), str(search.metric), str(search.warmup), str(search.sampler_seed)]
    head = {
        "hash": sha256("\n".join([*what, *(config.hash for config in configs)]).encode()),
        "words": list(words),
        "trials": search.trials,
        "metric": search.metric,
        "warmup": search.warmup,
        "sampler_seed": search.sampler_seed,
    }
    return configs, head


def is_private(config: Config) -> bool:
    """Return whether a scenario has an epsilon to search for.

    Raises:
        ConfigError: The scenario cannot run.
    """
    with closing(Simulation(config)) as simulation:
        return simulation.protection.planned().private


def reopen(folder: SweepFolder, trials: int | None) -> Search:
    """Return the search that a folder is of; with another number of trials, if one is given.

    Raises:
        ConfigError: Optuna is not installed.
        ResumeError: The folder is damaged.
    """
    require_optuna()
    head = folder.head()["search"]
    try:
        return Search(
            words=tuple(map(str, head["words"])),
            trials=trials or int(head["trials"]),
            metric=head["metric"],
            warmup=head["warmup"],
            sampler_seed=int(head["sampler_seed"]),
            private=bool(head["private"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"{folder.path / states.SWEEP} is damaged: {error!r}") from error


def require_optuna() -> None:
    """Check that Optuna is there, without importing it.

    Raises:
        ConfigError: It is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "--search: Optuna is not installed here; in a checkout of fedsim, type\n"
            f"  {INSTALL}\nor leave --search out and give lists of values: all of them are run"
        )


class SearchLoop(Loop):
    """The loop of a search, whose folder's lock is held.

    Args:
        folder: Its folder.
        configs: Of the points that it has already.
        pool, display: As for any sweep.
        search: What is searched for.
        known: What earlier sweeps have run; see `run_before`.
    """

    over = (*DONE, states.PRUNED, states.FAILED)

    def __init__(
        self,
        folder: SweepFolder,
        configs: Sequence[Config],
        pool: Pool,
        display: Display,
        search: Search,
        known: dict[str, tuple[Path, Entry, str]] | None = None,
    ) -> None:
        super().__init__(folder, configs, pool, display)
        self.search, self.space = search, parse(search.words)
        self.goal, self.known = search.goal, known or {}
        self.study = _study(folder.path / JOURNAL, search)
        self.trials: dict[str, list[int]] = {}  # hash -> trials that wait for its result
        self.numbers = {entry.hash: entry.number for entry in folder.entries}
        self.finished: dict[int, Curve] = {}
        self.kind: object = None
        self._loaded: Loaded = {}
        self._ready = False

    def refill(self) -> None:
        if not self._ready:
            self._ready = True
            self._take_up()
        while len(self.running) + len(self.waiting) < self.pool.slots:
            number = len(self.study.get_trials(deepcopy=False))
            if number >= self.search.trials:
                return
            self.study.sampler = _sampler(self.search.sampler_seed, number)
            trial = self.study.ask()
            drawn = {d.key: _draw(trial, d) for d in self.space.dimensions}
            self._wait_for(trial.number, drawn)

    def rule(self, entry: Entry) -> str:
        warmup = self.search.rounds_before(entry.rounds)
        if warmup >= entry.rounds:
            return ""
        return Rule(
            finished=self.folder.path / RIVALS,
            mark=self.folder.prune_file(entry),
            number=entry.number,
            warmup=warmup,
            rounds=entry.rounds,
            goal=self.goal,
        ).to_json()

    def settled(self, row: Row) -> None:
        status, entry = row.entry.status, row.entry
        if status in DONE:
            self._remember(row)
        if status in self.over:
            for trial in self.trials.pop(entry.hash, []):
                self._tell(trial, row)

    def _take_up(self) -> None:
        """Go on with the trials of an earlier sitting: tell what is known, run what is not."""
        for row in list(self.rows.values()):
            pruned = self.folder.prune_file(row.entry)
            if row.entry.status not in self.over and pruned.is_file():
                reason = pruned.read_text(encoding="utf-8")
                row.entry = self.folder.record(row.entry.number, states.PRUNED, reason=reason)
                self.waiting.remove(row.entry.number)
            if row.entry.status in DONE:
                self._remember(row)
        waiting = list(self.waiting)
        self.waiting.clear()
        for trial in self.study.get_trials(deepcopy=True):
            if trial.state.is_finished():
                continue
            if set(trial.params) != {d.key for d in self.space.dimensions}:
                # Killed while it was drawn: draw the rest as it would have been drawn.
                self.study.sampler = _sampler(self.search.sampler_seed, trial.number)
                live = _optuna().trial.Trial(self.study, trial._trial_id)
                self._wait_for(trial.number, {d.key: _draw(live, d) for d in self.space.dimensions})
            else:
                self._wait_for(trial.number, trial.params)
        self.waiting.extend(number for number in waiting if number not in self.waiting)

    def _wait_for(self, trial: int, drawn: dict[str, Drawn]) -> None:
        """Have a trial's point run, if that has not been done, and tell its result then."""
        point = self.space.point(drawn)
        config = compose(point.scenario, point.overrides, loaded=self._loaded)
        number = self.numbers.get(config.hash)
        if number is None:
            entry = Entry(
                number=len(self.folder.entries) + 1,
                point=point,
                hash=config.hash,
                name=config.settings.name,
                rounds=config.settings.rounds,
            )
            self.folder.add(entry)
            number = self.numbers[config.hash] = entry.number
            self.rows[number], self.configs[number] = Row(entry), config
            if config.hash in self.known:
                run, of, sweep = self.known[config.hash]
                row = self.rows[number]
                where = self.folder.relative(run)
                row.entry = self.folder.record(number, of.status, run=where, taken_from=sweep)
                self.as_found(row)
                self.display.changed(row, list(self.rows.values()))
        row = self.rows[number]
        self.trials.setdefault(config.hash, []).append(trial)
        if row.entry.status in self.over:
            self.settled(row)
        elif number not in self.running and number not in self.waiting:
            self.waiting.append(number)

    def _remember(self, row: Row) -> None:
        run = self.folder.run_of(row.entry)
        if run is None or row.entry.number in self.finished:
            return
        epsilon = read_outcome(run).epsilon
        curve = read_curve(run, row.entry.number, self.goal, kind_of(epsilon))
        self.finished[row.entry.number] = curve
        write_finished(self.folder.path / RIVALS, self.finished.values())

    def _tell(self, trial: int, row: Row) -> None:
        state = _optuna().trial.TrialState
        if row.entry.status == states.PRUNED:
            self.study.tell(trial, state=state.PRUNED)
        elif (values := self._values(row)) is None:
            self.study.tell(trial, state=state.FAIL)
        else:
            self.study.tell(trial, values)

    def _values(self, row: Row) -> list[float] | None:
        """Return a run's objectives; None if it has none that can be compared with the others'."""
        curve = self.finished.get(row.entry.number)
        run = self.folder.run_of(row.entry)
        if row.entry.status not in DONE or run is None or curve is None or not curve.at:
            return None
        utility, _ = curve.at[max(curve.at)]
        if not math.isfinite(utility):
            return None
        if not self.search.private:
            return [utility]
        epsilon = read_outcome(run).epsilon
        if epsilon is None:
            return None
        self.kind = self.kind or epsilon.kind
        return [utility, epsilon.value] if epsilon.kind == self.kind else None


def _draw(trial: Any, dimension: Dimension) -> Drawn:
    key, options = dimension.key, dimension.options
    if options and dimension.ordered:
        return int(trial.suggest_int(key, 0, len(options) - 1))
    if options:
        return str(trial.suggest_categorical(key, options))
    if dimension.whole:
        low, high = int(dimension.low), int(dimension.high)
        return int(trial.suggest_int(key, low, high, log=dimension.log))
    return float(trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log))


def _sampler(seed: int, number: int) -> Any:
    """Return the sampler of one trial; what it draws depends on the results told before alone."""
    drawn = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    return _optuna().samplers.TPESampler(seed=int(drawn))


class _Held:
    """The sweep folder's own lock is held, and unlike a file's it ends with the process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _study(journal: Path, search: Search) -> Any:
    optuna = _optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if journal.is_file():  # a last line that a kill has cut short counts for nothing
        data = journal.read_bytes()
        if len(whole := data[: data.rfind(b"\n") + 1]) < len(data):
            write_atomic(journal, whole)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the storage is marked as experimental
            held: Any = _Held()  # the base class of locks is no public name of Optuna's
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=held))
            return optuna.create_study(
                storage=storage,
                study_name="search",
                directions=["maximize", *(["minimize"] if search.private else [])],
                load_if_exists=True,
            )
    except (ValueError, KeyError, AssertionError) as error:
        raise ResumeError(f"{journal} is damaged ({error!r}); start anew with --fresh") from error


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
