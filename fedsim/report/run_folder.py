"""What a run left behind, read as it is: any file may be missing, unfinished or damaged.

A report is most wanted when a run went wrong, so nothing here raises for what a file holds; each
defect becomes a sentence in `RunData.problems`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.sources import parse_yaml
from fedsim.errors import ConfigError
from fedsim.report.network import Network, read_network
from fedsim.report.round_columns import END, Rounds, read_rounds

_PNG = b"\x89PNG\r\n"
_MOST_SAMPLES = 2**40


@dataclass(frozen=True, kw_only=True, eq=False)
class Holdings:
    """Who holds what, of the clients that the run chose to show (all, or a sample of them).

    Attributes:
        num_clients: Of the whole population.
        histogram_KC: Samples of each class (or target decile) at each shown client, int64.
        size_K: Samples of each shown client, int64.
        class_names: One per class, or empty.
    """

    num_clients: int
    histogram_KC: np.ndarray
    size_K: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run folder.

    Attributes:
        path: Where it is.
        config: The resolved configuration; empty if unreadable.
        config_text: The same as it stands in the file.
        overrides: As typed, one each.
        environment: Versions, machine, code and command.
        rounds: The metrics.
        holdings: Who holds what; None if not written (yet).
        privacy: The privacy statement, verbatim; None if not written (yet).
        summary: What the run wrote at its end; empty before.
        findings: What a run of questions has found; empty without any.
        network: The topology with its traffic; None if not written.
        audit: What an audit found, line by line; empty without one.
        audit_png: Its picture; None without one.
        problems: What is missing or damaged, in words.
    """

    path: Path
    config: dict[str, Any]
    config_text: str
    overrides: tuple[str, ...]
    environment: dict[str, Any]
    rounds: Rounds
    holdings: Holdings | None
    privacy: str | None
    summary: dict[str, Any]
    findings: dict[str, Any]
    network: Network | None
    audit: tuple[str, ...]
    audit_png: bytes | None
    problems: tuple[str, ...]

    @classmethod
    def read(cls, run: Path) -> RunData:
        """Read a run folder.

        Args:
            run: The folder; nothing outside it is read.

        Raises:
            ConfigError: There is no such folder.
        """
        if not run.is_dir():
            raise ConfigError(
                f"{run} is not a folder; give a run folder, such as "
                "results/runs/<scenario>/<time>_<hash>"
            )
        reader = _Reader(run)
        config, config_text = reader.config()
        summary = reader.json("summary.json", needed=False)
        claimed = summary.get("privacy") or reader.json("privacy.json")  # as spent, or as planned
        statement = claimed.get("statement")
        return cls(
            path=run,
            config=config,
            config_text=config_text,
            overrides=tuple(filter(None, reader.text("overrides.txt").splitlines())),
            environment=reader.json("env.json"),
            rounds=reader.rounds(),
            holdings=reader.holdings(),
            privacy=statement if isinstance(statement, str) and statement.strip() else None,
            summary=summary,
            findings=reader.json("findings.json", needed=False),
            network=reader.network(),
            audit=_sentences(reader.json("audit.json", needed=False).get("words")),
            audit_png=reader.png("audit.png"),
            problems=tuple(reader.problems),
        )

    def setting(self, key: str) -> Any:
        """Return a value of the configuration by its dotted key, or None.

        Example:
            >>> RunData.setting(run, "partition.num_clients")  # doctest: +SKIP
            100
        """
        value: Any = self.config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return value

    @property
    def name(self) -> str:
        """The scenario's name, or the folder's if that is lost."""
        return str(self.setting("name") or self.path.resolve().name)

    @property
    def planned_rounds(self) -> int | None:
        """How many rounds the scenario asks for."""
        return _whole(self.setting("rounds"))

    @property
    def num_clients(self) -> int | None:
        """The size of the population, where known."""
        if self.holdings is not None:
            return self.holdings.num_clients
        return _whole(self.setting("partition.num_clients"))


def _sentences(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


class _Reader:
    def __init__(self, run: Path) -> None:
        self.run = run
        self.problems: list[str] = []

    def text(self, name: str, needed: bool = True) -> str:
        try:
            return (self.run / name).read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            if needed:
                self.problems.append(f"{name} is missing")
        except OSError as error:
            self.problems.append(f"{name} cannot be read: {error.strerror}")
        return ""

    def json(self, name: str, needed: bool = True) -> dict[str, Any]:
        text = self.text(name, needed)
        if not text:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
        self.problems.append(f"{name} is damaged or unfinished")
        return {}

    def png(self, name: str) -> bytes | None:
        try:
            data = (self.run / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{name} cannot be read: {error.strerror}")
            return None
        if data.startswith(_PNG):
            return data
        self.problems.append(f"{name} is damaged")
        return None

    def config(self) -> tuple[dict[str, Any], str]:
        text = self.text("config.yaml")
        if not text:
            return {}, ""
        try:
            tree = parse_yaml(text, "config.yaml")
        except ConfigError as error:
            self.problems.append(str(error))
            return {}, text
        return {str(key): value for key, value in tree.items()}, text

    def rounds(self) -> Rounds:
        try:
            with (self.run / "metrics.jsonl").open("rb") as lines:
                rounds, problems = read_rounds(lines)
        except FileNotFoundError:
            rounds, problems = read_rounds([])[0], ["missing; no round has ended yet"]
        except OSError as error:
            rounds, problems = read_rounds([])[0], [f"it cannot be read: {error.strerror}"]
        self.problems += [f"metrics.jsonl: {problem}" for problem in problems]
        return rounds

    def holdings(self) -> Holdings | None:
        content = self.json("partition.json")
        if not content:
            return None
        try:
            return _holdings(content)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self.problems.append(f"partition.json does not hold what it should ({error})")
            return None

    def network(self) -> Network | None:
        content = self.json("graph.json", needed=False)
        if not content:
            return None
        try:
            return read_network(content)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self.problems.append(f"graph.json does not hold what it should ({error})")
            return None


def _holdings(content: dict[str, Any]) -> Holdings:
    histogram_KC = _counts(content["histogram"], 2)
    size_K = _counts(content["sizes"], 1) if "sizes" in content else histogram_KC.sum(axis=1)
    num_clients = _whole(content["num_clients"])
    names = content.get("class_names") or []
    if num_clients is None or num_clients < len(histogram_KC):
        raise ValueError("num_clients is less than the clients shown")
    if not isinstance(names, list):
        raise TypeError("class_names is not a list")
    # A client may lack the last classes altogether; then there are more names than columns.
    num_classes = histogram_KC.shape[1]
    shown = tuple(map(str, names[:num_classes])) if len(names) >= num_classes else ()
    return Holdings(
        num_clients=num_clients, histogram_KC=histogram_KC, size_K=size_K, class_names=shown
    )


def _whole(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < END
    return value if good and isinstance(value, int) else None


def _counts(value: object, dimensions: int) -> np.ndarray:
    array = np.array(value)
    good = array.ndim == dimensions and array.dtype.kind == "i" and array.size
    if not good or array.min() < 0 or array.max() >= _MOST_SAMPLES:
        raise ValueError("its counts are not whole numbers in a full table")
    return array.astype(np.int64)
