"""`fedsim new`: the files that a new strategy, mechanism or scenario begins with, ready to run.

The templates lie beside this file, as `<kind>.<what>.txt`; `NAME` and `CLASS` in them are replaced.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.catalog import ROOT
from fedsim.errors import ConfigError, did_you_mean

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What can be made.

    Attributes:
        files: template -> path in the checkout.
        next: Commands that try it.
    """

    files: dict[str, str]
    next: Sequence[str]


KINDS = {
    "strategy": Kind(
        files={
            "strategy.py.txt": "strategies/NAME.py",
            "strategy.yaml.txt": "scenarios/strategy/NAME.yaml",
            "strategy.test.txt": "tests/strategies/test_NAME.py",
        },
        next=(
            "pytest tests/strategies/test_NAME.py tests/contract/test_strategies.py -k NAME",
            "fedsim run scenario=quickstart strategy=NAME",
        ),
    ),
    "mechanism": Kind(
        files={
            "mechanism.py.txt": "privacy/NAME.py",
            "mechanism.yaml.txt": "scenarios/privacy/NAME.yaml",
            "mechanism.test.txt": "tests/privacy/test_NAME.py",
        },
        next=(
            "pytest tests/privacy/test_NAME.py tests/contract/test_privacy.py -k NAME",
            "fedsim plan scenario=quickstart privacy=NAME",
        ),
    ),
    "scenario": Kind(
        files={"scenario.yaml.txt": "scenarios/NAME.yaml"},
        next=("pytest tests/test_scenarios.py -k NAME", "fedsim run scenario=NAME"),
    ),
}


def new(kind: str, name: str, root: Path | None = None) -> tuple[list[Path], list[str]]:
    """Write the files of something new; return them, and the commands that try it.

    Args:
        kind: One of `KINDS`.
        name: As it will be typed: lower case, digits, `_`.
        root: The checkout to write to; by default the one that fedsim runs from.

    Raises:
        ConfigError: The name will not do, it is there already, or there is no checkout.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"{kind!r} cannot be made{did_you_mean(kind, KINDS)}; there are: {', '.join(KINDS)}"
        )
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} is not a name; expected lower case, digits and '_', such as my_{kind}"
        )
    root = ROOT.parent if root is None else root
    if not (root / "scenarios").is_dir() or not (root / "tests").is_dir():
        raise ConfigError(
            f"{root} is no checkout of fedsim (it has no scenarios and tests); give one with "
            "--root DIR, or write a scenario of your own anywhere: fedsim run scenario=my.yaml"
        )
    chosen = KINDS[kind]
    made = {_HERE / t: root / place.replace("NAME", name) for t, place in chosen.files.items()}
    for path in made.values():
        if path.exists():
            raise ConfigError(f"{path} is there already; choose another name, or remove it first")
    for template, path in made.items():
        text = template.read_text(encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("NAME", name).replace("CLASS", _camel(name)), encoding="utf-8")
    return list(made.values()), [line.replace("NAME", name) for line in chosen.next]


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))
