"""Golden curves: a change without numerical intent must leave every figure of these runs alone.

To store them anew after an intended change: `python tests/golden/test_golden.py`, and say why in
the commit message.
"""

import json
from pathlib import Path

import pytest

from fedsim.config import compose
from fedsim.simulation import Simulation

STORED = Path(__file__).parent / "curves.json"
RUNS = {
    "quickstart": ["scenario=quickstart", "rounds=20", "client.epochs=1"],
    "quickstart, in_process": ["scenario=quickstart", "rounds=20", "engine=in_process"],
    "fedau_digits": ["scenario=fedau_digits", "rounds=20", "evaluation.every=1"],
    "regression": ["scenario=regression", "rounds=20", "evaluation.every=1"],
    "fedadam": ["scenario=quickstart", "strategy=fedadam", "rounds=20", "client.epochs=1"],
}


def curve(words: list[str]) -> list[dict[str, float]]:
    simulation = Simulation(compose(words[0].removeprefix("scenario="), words[1:]))
    rounds = simulation.loop.run(simulation.runtime.initial_params())
    return [{**report.train, **report.central} for _, report in rounds]


@pytest.mark.parametrize("name", RUNS)
def test_curve_is_the_stored_one(name: str) -> None:
    stored = json.loads(STORED.read_text())[name]
    fresh = curve(RUNS[name])
    assert len(fresh) == len(stored) == 21
    for got, expected in zip(fresh, stored, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


if __name__ == "__main__":
    STORED.write_text(json.dumps({name: curve(words) for name, words in RUNS.items()}, indent=0))
