"""The typed top level of a scenario: every key of `scenarios/base.yaml` that is not a part.

The defaults here and the values there are the same (a test compares them), so a scenario that does
not extend `base` still means the same thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fedsim.admission import Admission
from fedsim.config.targets import KeyedError, plugin_prefixes
from fedsim.errors import ConfigError
from fedsim.parts import Part, Range

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Part):
    """When and on what the model is evaluated.

    Attributes:
        every: Rounds between evaluations; the last round is always evaluated.
        central: Whether to evaluate on the data set's test split.
        clients: Whose own held-out samples to evaluate on (`partition.holdout`).
        batch_size: Samples per evaluation batch.
        fused: With `clients=cohort`: participants score the model as they receive it, within their
            training replies, which saves an exchange (seconds, when deployed). A round's scores are
            then of the model after the round before, by those who train it now.
        decomposition: Whether to record, every round, which part of the participants' training loss
            is due to local training, to distribution shift and to aggregation; costs a pass over
            their data for each participant.
    """

    every: Annotated[int, Range(ge=1)] = 1
    central: bool = True
    clients: Literal["none", "cohort", "all"] = "none"
    batch_size: Annotated[int, Range(ge=1)] = 4096
    fused: bool = False
    decomposition: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fused and self.clients != "cohort":
            raise ConfigError(
                f"fused: true, but clients={self.clients}: those who train are who can score in "
                "the same reply; set evaluation.clients=cohort, or evaluation.fused=false"
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Part):
    """How often the state of a run is saved.

    Attributes:
        every: Rounds between checkpoints; the last round always has one.
        keep: How many of the latest are kept.
    """

    every: Annotated[int, Range(ge=1)] = 10
    keep: Annotated[int, Range(ge=1)] = 2


@dataclass(frozen=True, kw_only=True)
class Output(Part):
    """Where runs are written.

    Attributes:
        root: The folder that holds run folders.
    """

    root: str = "results/runs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.root or "\0" in self.root:
            raise ConfigError(f"root: {self.root!r} is not a folder; expected one such as 'runs'")


@dataclass(frozen=True, kw_only=True)
class Scenario(Part):
    """The settings of a run that belong to no part.

    Attributes:
        name: Names the run's folder: letters, digits, `_`, `-` and `.`; by default the scenario's
            file name.
        seed: Every draw is keyed by it.
        rounds: How many rounds to run.
        device: `auto` (the first GPU, else the CPU), `cpu`, `mps`, `cuda` or `cuda:<index>`.
        precision: Floating-point type of data and weights.
        plugins: Further package prefixes that `_target_` may name.
        evaluation: See `Evaluation`.
        checkpoint: See `Checkpoint`.
        admission: See `fedsim.admission.Admission`.
        output: See `Output`.
    """

    name: str = "base"
    seed: Annotated[int, Range(ge=0, lt=2**32)] = 0
    rounds: Annotated[int, Range(ge=1, lt=2**32)] = 50
    device: str = "auto"
    precision: Literal["float32", "float64"] = "float32"
    plugins: tuple[str, ...] = ()
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    admission: Admission = field(default_factory=Admission)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name: {self.name!r} is not allowed; expected letters, digits, '_', '-' and '.', "
                "at most 100; rename the file or set name="
            )
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"device: {self.device!r} is not allowed; expected auto, cpu, mps, cuda or cuda:0"
            )
        plugin_prefixes(self.plugins)


SECTIONS: dict[str, type[Part]] = {
    "evaluation": Evaluation,
    "checkpoint": Checkpoint,
    "admission": Admission,
    "output": Output,
}
"""The keys of `Scenario` that are mappings, and their schema."""


def plugins_of(tree: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the plugins of a tree that is not checked yet; other keys depend on them.

    Raises:
        KeyedError: They are not a list of package prefixes.
    """
    plugins = tree.get("plugins", [])
    if not isinstance(plugins, list):
        raise KeyedError("plugins", f"{plugins!r} is not allowed; expected a list such as [mylab.]")
    return plugin_prefixes(plugins)
