"""The report of a sweep."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedsim.sweep.folder import SweepFolder
from fedsim.sweep.report import write_sweep_report

from .made_up import make_sweep, private

HOSTILE = "<script>alert('x')</script>\"&"


def grid(**other: Any) -> list[dict[str, Any]]:
    return [
        {
            "axes": {"strategy": s, "privacy.epsilon": e, "seed": seed},
            "value": (0.5 if s == "fedavg" else 0.6) + e / 100 + seed / 50,
            "privacy": private(float(e), **other),
        }
        for s in ("fedavg", "fedau")
        for e in (1, 2, 8)
        for seed in (0, 1)
    ]


def page_of(folder: SweepFolder) -> str:
    return write_sweep_report(folder.path).read_text()


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]).split())


def test_the_privacy_utility_curve_and_its_terms(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, grid())
    page = page_of(folder)
    text = text_of(page)
    assert "made_up finished" in text and "12 of 12" in text
    assert "6 settings, up to 2 seeds each; 0 failed" in text
    assert "Privacy and utility: accuracy" in text and "Pareto front" in text
    assert "Epsilon at delta: 1e-05, unit: user, relation: add or remove one" in text
    assert "Sampling: Poisson, rate 0.1. Accountant: PLD." in text
    assert "Best accuracy 69.00 ± 1.41 % strategy=fedau privacy.epsilon=8" in text
    assert "fedavg 1 accuracy 52.00 ± 1.41 % 2 of 2 1 (delta 1e-05)" in text
    assert "fedau 8 accuracy 69.00 ± 1.41 % 2 of 2 8 (delta 1e-05) yes" in text
    assert "epsilon 44 at delta 0.00012" in text and "Tuning not charged" in text
    assert page.count("<svg") == 1


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = page_of(make_sweep(tmp_path, grid()))
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|iframe)|url\((?!#)|src=\"(?!data:)", page)
    assert set(re.findall(r'href="(.)', page)) <= {"#"}


def test_epsilons_of_different_meaning_have_pictures_of_their_own(tmp_path: Path) -> None:
    made = grid() + [
        {**p, "axes": {**p["axes"], "unit": "b"}} for p in grid(unit="one sample of a user")
    ]
    page = page_of(make_sweep(tmp_path, made))
    assert page.count("<svg") == 2
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert page.count("Whoever publishes the best of the 12 private runs") == 2


def test_an_epsilon_without_terms_is_told_but_not_shown(tmp_path: Path) -> None:
    made = grid()
    made[0]["privacy"] = {"epsilon": 0.123}
    text = text_of(page_of(make_sweep(tmp_path, made)))
    assert "epsilon is given without delta, unit, relation, sampling, accountant" in text
    assert "0.123" not in text
    assert "1 runs whose epsilon is not shown are not counted: it costs more than that" in text


def test_failed_points_and_their_commands(tmp_path: Path) -> None:
    made = grid()
    made[3] |= {"status": "failed", "reason": HOSTILE}
    del made[4]["value"]
    page = page_of(make_sweep(tmp_path, made))
    text = text_of(page)
    assert HOSTILE not in page
    assert "10 of 12 done" in text and "These points failed" in text
    assert "alert(&#x27;x&#x27;)" in page
    assert "fedsim run scenario=quickstart strategy=fedavg privacy.epsilon=2 seed=1" in text


@pytest.mark.parametrize(
    ("axes", "picture"),
    [
        ([{"client.lr": lr} for lr in (0.1, 0.01, 1)], "utility over client.lr"),
        ([{"strategy": s} for s in ("fedavg", "_odd$x^2", "c")], "utility of each setting"),
    ],
)
def test_a_sweep_without_privacy(tmp_path: Path, axes: list[dict[str, Any]], picture: str) -> None:
    made = [{"axes": {**a, "seed": s}, "value": 0.5 + s / 10} for a in axes for s in (0, 1)]
    page = page_of(make_sweep(tmp_path, made))
    assert picture in page and page.count("<svg") == 1
    text = text_of(page)
    assert "epsilon" not in text and "choosing" not in text
    assert "55.00 ± 7.07 %" in text


def test_a_sweep_that_has_not_begun(tmp_path: Path) -> None:
    made = [{"axes": {"seed": seed}} for seed in (0, 1)]
    assert "0 of 2 done" in text_of(page_of(make_sweep(tmp_path, made)))


def test_points_as_csv_in_long_form(tmp_path: Path) -> None:
    made = grid()
    del made[-1]["value"]
    folder = make_sweep(tmp_path, made)
    write_sweep_report(folder.path)
    rows = list(csv.DictReader((folder.path / "points.csv").open()))
    assert len(rows) == 11 * 2 + 1
    first = rows[0]
    assert (first["point"], first["metric"], first["round"]) == ("1", "central.accuracy", "2")
    assert float(first["value"]) == 0.51
    assert (first["epsilon"], first["delta"], first["unit"]) == ("1.0", "1e-05", "user")
    assert (first["privacy.epsilon"], first["seed"]) == ("1", "0")
    assert (rows[-1]["status"], rows[-1]["metric"]) == ("planned", "")


def test_summary_for_machines(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, grid())
    write_sweep_report(folder.path)
    told = json.loads((folder.path / "summary.json").read_text())
    assert (told["points"], told["done"], told["failed"]) == (12, 12, [])
    first = told["settings"][0]
    assert first["mean"] == pytest.approx(0.52) and first["seeds"] == 2
    assert first["privacy"]["epsilon"] == 1.0 and first["privacy"]["unit"] == "user"
    assert [setting["pareto"] for setting in told["settings"]] == [False] * 3 + [True] * 3
    assert told["tuning"][0]["composed_epsilon"] == 44
    assert told["tuning"][0]["best_of_epsilon"] is None


def test_runs_of_different_code_are_told(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, grid())
    run = folder.run_of(folder.entries[0])
    assert run is not None
    (run / "env.json").write_text(json.dumps({"git": {"commit": "b" * 40, "changed": True}}))
    text = text_of(page_of(folder))
    assert "made by different versions of the code" in text and "bbbbbbbbbbbb+" in text
