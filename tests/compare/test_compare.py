"""Several runs beside each other: grouping, figures by hand, the page and the files beside it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedsim.compare import html, tables
from fedsim.compare.members import compare, flat
from fedsim.compare.pictures import curve, fair
from fedsim.errors import ConfigError, ResumeError
from fedsim.report import figures
from fedsim.sweep.folder import FINISHED, Entry, SweepFolder
from fedsim.sweep.grid import Point
from tests.report.conftest import make_run

PRIVATE = {
    "statement": "(2, 1e-05)-DP per user",
    "epsilon": 2.0,
    "delta": 1e-5,
    "unit": "user",
    "relation": "add_remove",
    "sampling": "Poisson 0.1",
    "accountant": "PLD",
    "trust": "the server",
}


def run(path: Path, *, keys: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Write a run folder whose configuration has further keys."""
    make_run(path, rounds=6, clients=10, **settings)
    lines = (path / "config.yaml").read_text()
    config = yaml.safe_load(lines)
    for key, value in (keys or {}).items():
        node = config
        *parents, last = key.split(".")
        for word in parents:
            node = node.setdefault(word, {})
        node[last] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def final(path: Path, value: float) -> None:
    """Give a run's last round a central accuracy."""
    *lines, last = (path / "metrics.jsonl").read_text().splitlines()
    report = json.loads(last)
    report["central"]["accuracy"] = value
    (path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(report)]) + "\n")


FEDAVG = {"strategy": {"_target_": "strategies.fedavg.FedAvg", "server_lr": 1.0}}


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Two seeds of FedAU, two of FedAvg; the last accuracies are 0.8, 0.6 and 0.5, 0.5."""
    made = [
        run(tmp_path / "a0", seed=0),
        run(tmp_path / "b0", seed=2, keys=FEDAVG),
        run(tmp_path / "a1", seed=1, keys={"seed": 1}),
        run(tmp_path / "b1", seed=3, keys={**FEDAVG, "seed": 1}),
    ]
    for path, value in zip(made, (0.8, 0.5, 0.6, 0.5), strict=True):
        final(path, value)
    return made


def test_runs_that_differ_in_their_seed_are_one_setting(four: list[Path]) -> None:
    comparison = compare(four)
    assert [group.name for group in comparison.groups] == ["FedAU", "FedAvg"]
    assert [[m.data.path.name for m in g.members] for g in comparison.groups] == [
        ["a0", "a1"],
        ["b0", "b1"],
    ]
    assert comparison.diff == {
        "strategy._target_": ["strategies.fedau.FedAU", "strategies.fedavg.FedAvg"],
        "strategy.cutoff": ["50", None],
        "strategy.server_lr": [None, "1.0"],
    }


def test_a_run_given_twice_counts_once(four: list[Path]) -> None:
    assert len(compare([four[0], four[1], four[0]]).members) == 2


def test_mean_deviation_and_worst_tenth_by_hand(four: list[Path]) -> None:
    fedau, fedavg = tables.figures_of(compare(four))
    assert (fedau.where, fedau.metric, fedau.rounds) == ("central", "accuracy", 6)
    assert fedau.mean == pytest.approx(0.7, rel=1e-12)
    assert fedau.deviation == pytest.approx(np.sqrt(0.02), rel=1e-12)  # (0.1^2 + 0.1^2) / (2 - 1)
    assert fedavg.deviation == 0
    assert fedau.value() == "70.00 ± 14"
    own = []
    for path in (four[0], four[2]):
        last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        own += last["per_client"]["accuracy"]
    assert fedau.worst == pytest.approx(np.mean(sorted(own)[:2]), rel=1e-12)  # a tenth of 20


def test_curves_are_means_over_seeds_and_time_adds_up(four: list[Path]) -> None:
    group = compare(four).groups[0]
    by_round = curve(group, "central", "accuracy")
    by_time = curve(group, "central", "accuracy", by="time")
    assert by_round is not None and by_time is not None
    assert by_round.place_M.tolist() == list(range(7))
    assert by_round.mean_M[-1] == pytest.approx(0.7)
    lines = [(p / "metrics.jsonl").read_text().splitlines() for p in (four[0], four[2])]
    seconds = [sum(json.loads(line)["seconds"] for line in run) for run in lines]
    assert by_time.place_M[-1] == pytest.approx(np.mean(seconds))
    assert curve(group, "central", "nonsense") is None
    assert curve(group, "central", "accuracy", by="simulated") is None
    for path, pace in ((four[0], 2.0), (four[2], 4.0)):
        told = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for line in told:
            line["simulated_seconds"] = pace * line["server_round"]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    simulated = curve(compare(four).groups[0], "central", "accuracy", by="simulated")
    assert simulated is not None
    assert simulated.place_M.tolist() == [3.0 * r for r in range(7)]
    assert fair(group, "nonsense") is None


def test_keys_that_leave_the_result_alone_do_not_tell_runs_apart() -> None:
    config = {"seed": 1, "output": {"root": "x"}, "name": "a", "client": {"lr": 0.1, "steps": None}}
    assert flat(config) == {"seed": "1", "client.lr": "0.1", "client.steps": "null"}


def test_a_key_of_a_part_that_two_runs_share_tells_them_apart(tmp_path: Path) -> None:
    made = [
        run(tmp_path / "a"),
        run(tmp_path / "b", keys={"strategy.cutoff": 10}),
        run(tmp_path / "c", keys=FEDAVG),
    ]
    names = [group.name for group in compare(made).groups]
    assert names == ["FedAU cutoff=50", "FedAU cutoff=10", "FedAvg"]


def test_the_page_and_the_files_beside_it(four: list[Path], tmp_path: Path) -> None:
    (four[1] / "privacy.json").write_text(json.dumps(PRIVATE))
    (four[3] / "privacy.json").write_text(json.dumps({**PRIVATE, "epsilon": 2.5}))
    page = html.write_comparison(four, tmp_path / "out")
    text = page.read_text()
    for title in ("Results", "Learning curves", "Privacy and utility", "Fairness over clients",
                  "What differs between the settings", "Who took part", "Who holds what",
                  "Privacy", "Environment"):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    assert "(2, 1e-05)-DP per user" in text
    assert "Epsilon at delta: 1e-05, unit: user, relation: add_remove, trust: the server" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text), "it loads nothing"
    assert "default-src 'none'" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert not [name for name in set(ids) if ids.count(name) > 1]
    files = sorted(path.name for path in page.parent.iterdir())
    assert files == ["accuracy_rounds.png", "accuracy_time.png", "curves.csv", "fairness.png",
                     "holdings.png", "participation.png", "report.html", "results.csv",
                     "results.tex"]  # fmt: skip
    rows = list(csv.DictReader((page.parent / "results.csv").open()))
    assert [(r["setting"], r["strategy"], r["seeds"]) for r in rows] == [
        ("FedAU", "FedAU", "2"),
        ("FedAvg", "FedAvg", "2"),
    ]
    assert float(rows[0]["mean"]) == pytest.approx(0.7)
    assert (rows[0]["epsilon"], rows[1]["epsilon"], rows[1]["delta"]) == ("", "2.5", "1e-05")
    assert len(list(csv.DictReader((page.parent / "curves.csv").open()))) > 4 * 7
    tex = (page.parent / "results.tex").read_text()
    assert r"FedAU & 2 & 70.00 $\pm$ 14 & " in tex
    assert r"accuracy (\%)" in tex
    assert "% epsilon at delta 1e-05, unit: user" in tex


def test_a_sweep_brings_its_points(four: list[Path], tmp_path: Path) -> None:
    entries = [
        Entry(number=i, point=Point(scenario="s", overrides=(), axes={}), hash=str(i), name="s",
              rounds=6)
        for i in (1, 2)
    ]  # fmt: skip
    sweep = SweepFolder.create(tmp_path / "sweeps", "s", ["fedsim"], entries)
    with sweep.lock():
        sweep.record(1, FINISHED, run=sweep.relative(four[0]))
    comparison = compare([sweep.path, four[1]])
    assert [member.data.path.name for member in comparison.members] == ["a0", "b0"]
    assert comparison.skipped == 1
    assert "1 points of the sweeps have no run" in html.render(
        comparison, tables.figures_of(comparison), []
    )


def test_what_cannot_be_compared(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"nowhere is neither a run folder .* nor a sweep's"):
        compare([four[0], tmp_path / "nowhere"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another folder with --out DIR"):
        html.write_comparison(four[:2], tmp_path / "file")


def test_runs_that_went_wrong_are_told_and_drawn(tmp_path: Path) -> None:
    made = [run(tmp_path / "a"), run(tmp_path / "b", keys=FEDAVG, per_client=False)]
    (made[0] / "metrics.jsonl").unlink()
    (made[1] / "partition.json").write_text("{")
    (made[1] / "env.json").write_text("{}")
    text = html.write_comparison(made, tmp_path / "out").read_text()
    assert "a: metrics.jsonl: missing; no round has ended yet" in text
    assert "b: partition.json is damaged or unfinished" in text
    assert "The runs differ in versions" in text


def test_names_from_files_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>$x_1$ & 50%"
    made = [run(tmp_path / "a"), run(tmp_path / "b", keys={"strategy.cutoff": evil})]
    page = html.write_comparison(made, tmp_path / "out")
    assert "<script" not in page.read_text()
    assert r"\& 50\%" in (page.parent / "results.tex").read_text()


def test_a_png_has_equal_bytes_for_equal_data() -> None:
    def draw(figure: Any) -> None:
        figure.subplots().plot([1, 2, 1])

    first = figures.png((2, 1), draw)
    assert first.startswith(b"\x89PNG")
    assert first == figures.png((2, 1), draw)
