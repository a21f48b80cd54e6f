"""fedsim: a federated and privacy-preserving learning simulator on Flower.

`fedsim run scenario=quickstart` is the front door; `fedsim.rounds` is where to start reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.notebook import Run

__all__ = ["load", "run"]
__version__ = "0.1.0"


def _check_siblings() -> None:
    """Refuse to start with somebody else's `strategies` or `privacy` on the import path.

    The names of our sibling packages are global, so a user's own `strategies.py`, or another
    distribution, can shadow them; the failure would otherwise be a puzzling import error later.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("strategies", "privacy", "scenarios"):
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        if spec is None:
            raise ImportError(
                f"fedsim's package '{name}' is missing beside {home / 'fedsim'}; "
                "install the distribution fedsim-lab again"
            )
        if not any(Path(place).resolve().parent == home for place in places):
            raise ImportError(
                f"'{name}' is imported from {spec.origin or places}, which is not fedsim's. "
                f"Rename your {name}.py, or uninstall the other distribution."
            )


_check_siblings()


def run(
    scenario: str, overrides: Sequence[str] = (), *, smoke: bool = False, progress: bool = True
) -> Run:
    """Run a scenario to its end; see `fedsim.notebook.run`."""
    from fedsim import notebook  # here, as it imports torch, and `fedsim list` does not

    return notebook.run(scenario, overrides, smoke=smoke, progress=progress)


def load(path: Path | str) -> Run:
    """Return a run from its folder; see `fedsim.notebook.load`."""
    from fedsim import notebook

    return notebook.load(path)
