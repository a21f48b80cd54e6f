import json

import numpy as np
import pytest

from fedsim.report.fairness import fairness, fairness_histogram
from fedsim.report.html import render
from fedsim.report.measures import best_round
from fedsim.report.run_folder import RunData


def test_worst_tenth_of_an_accuracy_is_the_lowest():
    spread = fairness("accuracy", np.arange(20, 0, -1) / 20)
    assert spread.worst == pytest.approx((1 + 2) / 40, abs=1e-15)
    assert spread.best == pytest.approx((19 + 20) / 40, abs=1e-15)
    assert spread.mean == pytest.approx(21 / 40, abs=1e-15)
    assert spread.deviation == pytest.approx(np.sqrt((20**2 - 1) / 12) / 20, abs=1e-15)
    assert spread.value_K[[0, -1]].tolist() == [1 / 20, 1.0]


@pytest.mark.parametrize(("clients", "tenth"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_tenth_is_rounded_up(clients, tenth):
    spread = fairness("accuracy", np.arange(clients, dtype=np.float64))
    assert spread.worst == np.arange(tenth).mean()


def test_worst_tenth_of_an_error_is_the_highest():
    spread = fairness("mse", np.array([1.0, 5.0, 3.0]))
    assert (spread.worst, spread.best) == (5.0, 1.0)  # a tenth of three clients is one client


def test_what_is_not_finite_is_counted_and_left_out():
    spread = fairness("mse", np.array([np.nan, 2.0, np.inf, 4.0, 1e300]))
    assert spread.left_out == 3 and spread.mean == 3.0
    assert fairness("mse", np.array([np.nan])) is None


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [1e100, -1e100], list(range(1000))])
def test_the_histogram_names_mean_and_worst(values):
    spread = fairness("mse", np.array(values, np.float64))
    picture = fairness_histogram(spread)
    assert "mean:" in picture and "mean of the worst 10 %:" in picture


def test_every_client_by_last_and_best_round_and_the_footprint(fake_run):
    run = fake_run(clients=2, rounds=3)
    per_round = {1: ([0.25, 0.5], 0.5), 2: ([0.75, 0.875], 0.8125), 3: ([0.625, 0.75], 0.6875)}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        own, _ = per_round[line["server_round"]]
        columns = {"client-index": [0.0, 1.0], "accuracy": own, "weighted-f1": own[::-1]}
        line["per_client"] = {**columns, "num-examples": [1.0, 1.0]}
        taken = {"client-index": [1.0], "bytes-down": [2e6], "bytes-up": [1e6]}
        taken |= {"flops": [3e9], "seconds": [0.5]}
        line["simulated_seconds"] = 0.5 * line["server_round"]
        line["footprint"] = {"train": taken if line["server_round"] > 1 else {}}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = RunData.read(run)
    assert best_round("accuracy", data.rounds.evaluated).server_round == 2
    assert best_round("loss", data.rounds.evaluated) is None
    page = render(data)
    for title in ("accuracy, last (round 3)", "weighted-f1, best (round 2)"):
        assert title in page
    mean, first, second = ["68.75 %", "81.25 %"], ["62.50 %", "75.00 %"], ["75.00 %", "87.50 %"]
    for cells in (["mean", *mean, *mean], ["0", *first, *second], ["1", *second, *first]):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    assert "Accuracy by bytes moved" in page
    assert "Accuracy by simulated time" not in page  # round 0 does not tell
    lines[0]["simulated_seconds"] = 0.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Accuracy by simulated time" in render(RunData.read(run))
    taken = data.rounds.footprint["train"]
    assert taken.client_K.tolist() == [1] and taken.values["flops"].tolist() == [6e9]
    row = ["received, MB", *["4"] * 5]
    assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert "<td>1</td><td>4</td><td>2</td><td>6</td><td>1</td>" in page
