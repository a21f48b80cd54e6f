"""Where gradient differences pay: the ratio of results/diff2 over ε, at its settings."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.ill_conditioned import IllConditioned
from privacy.accountant import calibrate
from privacy.diff2_schedule import of_rounds, tight

HERE = Path(__file__).parents[2] / "results/diff2"


@pytest.mark.nightly
def test_the_advantage_rises_with_epsilon_and_crosses_one() -> None:
    """Three of the six ε, 20 runs each with other noise: 0.73, 2.0 and 3.7 there."""
    spec = importlib.util.spec_from_file_location("diff2_shape", HERE / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    sys.modules["diff2_shape"] = twin
    spec.loader.exec_module(twin)
    assert twin.check() < 1e-10
    data = IllConditioned().load()
    x_ND = np.hstack([data.train_x.numpy(), np.ones((len(data.train_x), 1), np.float32)])
    y_N = data.train_y.numpy().ravel()
    lines = [json.loads(line) for line in (HERE / "runs.jsonl").read_text().splitlines()]
    found = {}
    for line in lines:
        if line["epsilon"] not in (1 / 64, 1 / 4, 16):
            continue
        s = calibrate(
            lambda z: tight(of_rounds(1, 1), noise=z, split=0.8).events(),
            epsilon=line["epsilon"],
            delta=twin.DELTA,
            relation="replace_one",
        )
        point = twin.Point(**line["point"])
        values = twin.scores(x_ND, y_N, [point], s, seed=9, runs=20)[point]
        found[line["method"], line["epsilon"]] = values.mean()
    ratios = [found["DP-GD", e] / found["DIFF2", e] for e in (1 / 64, 1 / 4, 16)]
    assert ratios[0] < 1 < 1.5 < ratios[1] < ratios[2]
    for method, low, high in (("DP-GD", -1.3, -0.9), ("DIFF2", -1.6, -1.15)):
        slope = np.log(found[method, 16] / found[method, 1 / 64]) / np.log(16 * 64)
        assert low < slope < high
