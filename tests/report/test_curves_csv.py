import csv
import io
import json

from fedsim.report.curves_csv import curves_csv
from fedsim.report.round_columns import read_rounds


def test_every_figure_in_full_precision():
    lines = [
        {"server_round": 0, "central": {"accuracy": 0.1}, "seconds": 0.25},
        {
            "server_round": 1,
            "asked": 3,
            "admitted": [0, 1],
            "rejected": {"error": 1},
            "train": {"train-loss": 0.1 + 0.2},
            "per_client": {"client-index": [0.0, 1.0], "accuracy": [0.25, 0.75]},
            "seconds": 0.5,
        },
    ]
    rounds, _ = read_rounds([json.dumps(line).encode() + b"\n" for line in lines])
    head, first, second = csv.reader(io.StringIO(curves_csv(rounds)))
    assert head == [
        "round",
        "asked",
        "admitted",
        "rejected",
        "rejected.error",
        "train.train-loss",
        "central.accuracy",
        "per-client.accuracy.mean",
        "per-client.accuracy.p10",
        "per-client.accuracy.p90",
        "seconds",
    ]
    assert first == ["0", "0", "0", "0", "0", "", "0.1", "", "", "", "0.25"]
    assert second[:7] == ["1", "3", "2", "1", "1", "0.30000000000000004", ""]
    assert second[7] == "0.5" and float(second[8]) == 0.3 and float(second[9]) == 0.7


def test_what_rounds_took_where_it_is_known():
    lines = [
        {"server_round": 0, "simulated_seconds": 0.0},
        {
            "server_round": 1,
            "simulated_seconds": 0.1,
            "footprint": {
                "train": {"client-index": [3], "bytes-down": [2e6], "bytes-up": [1e6]},
                "evaluate": {"client-index": [3], "bytes-down": [5e5], "bytes-up": [0]},
            },
        },
        {"server_round": 2, "simulated_seconds": 0.1 + 0.2},
    ]
    text = [json.dumps(line).encode() + b"\n" for line in lines]
    rows = list(csv.DictReader(io.StringIO(curves_csv(read_rounds(text)[0]))))
    assert [row["simulated-seconds"] for row in rows] == ["0.0", "0.1", "0.30000000000000004"]
    assert [row["megabytes"] for row in rows] == ["0.0", "3.5", "3.5"]
    # Among neighbours, what one sends is what another receives.
    lines[1]["footprint"]["train"]["replied"] = [1]
    rounds, _ = read_rounds([json.dumps(line).encode() + b"\n" for line in lines])
    assert [r["megabytes"] for r in csv.DictReader(io.StringIO(curves_csv(rounds)))][1] == "1.5"
    lines[2]["simulated_seconds"] = None  # it has become unknown: none is shown
    rounds, _ = read_rounds([json.dumps(line).encode() + b"\n" for line in lines])
    assert rounds.places("simulated") is None and rounds.places("bytes") is not None


def test_no_rounds():
    assert curves_csv(read_rounds([])[0]) == "round,asked,admitted,rejected,seconds\n"
