import base64
import csv
import json
import re
import subprocess
import sys
import time
from html import unescape
from html.parser import HTMLParser

import pytest

from fedsim.report.html import write_report

HOSTILE = "<script>alert('x')</script>\"&amp;<img src=http://evil.example/a>"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would see, and checks that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.words, self.open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        self.ids += [v for k, v in attrs if k == "id"]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def report(run):
    written = write_report(run)
    assert written == run / "report.html"
    return Page(written.read_text())


def test_the_figures_shown_are_those_of_the_run(fake_run):
    run = fake_run(clients=20, rounds=12)
    page, lines = report(run), metrics(run)
    accuracy = [line["central"]["accuracy"] for line in lines]
    best = max(range(13), key=accuracy.__getitem__)
    assert f"Final accuracy {100 * accuracy[-1]:.2f} %" in page.text
    assert f"Best accuracy {100 * accuracy[best]:.2f} % round {best};" in page.text
    assert "fedau_fashion finished" in page.text
    assert "strategy FedAU · data fashion_mnist · model MLP · engine Cohort" in page.text
    assert "20 clients · 12 of 12 rounds · device cpu" in page.text
    asked = sum(line["asked"] for line in lines)
    used = sum(len(line["admitted"]) for line in lines)
    refused = sum(sum(line["rejected"].values()) for line in lines)
    assert f"{used:,} of {asked:,} asked for; {refused:,} rejected" in page.text
    own = sorted(lines[-1]["per_client"]["accuracy"])
    assert f"Mean of the worst 10 % {100 * (own[0] + own[1]) / 2:.2f} %" in page.text
    assert f"Worst client {100 * own[0]:.2f} %" in page.text
    assert "fedsim run scenario=fedau_fashion strategy=fedau rounds=12" in page.text
    assert "0123456789abcdef0123456789abcdef01234567" in page.text
    assert "_target_: strategies.fedau.FedAU" in page.text
    assert "missing" not in page.text and "damaged" not in page.text


def test_the_last_ten_evaluated_rounds_are_tabled(fake_run):
    run = fake_run(rounds=12)
    lines = metrics(run)
    for line in lines:
        if line["server_round"] == 11:
            line.update(central={}, clients={}, per_client={})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(run).read_text()
    table = html[html.index("Last 10 evaluated rounds") :]
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table[: table.index("</table>")])
    cells = [[unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]
    assert [row[0] for row in cells] == ["2", "3", "4", "5", "6", "7", "8", "9", "10", "12"]
    last = lines[-1]
    assert cells[-1] == [
        "12",
        f"{last['central']['loss']:#.4g}",
        f"{100 * last['central']['accuracy']:.2f} %",
        f"{100 * last['clients']['accuracy']:.2f} %",
        f"{last['train']['train-loss']:#.4g}",
        f"{len(last['admitted'])} of {last['asked']}",
        f"{sum(last['rejected'].values())}",
        f"{last['seconds']:.3g}",
    ]


def test_what_a_strategy_says_is_drawn_by_name_and_the_curves_are_written_beside_it(fake_run):
    run = fake_run(rounds=5)
    lines = metrics(run)
    for line in lines[1:]:
        line["diagnostics"] = {"consensus-distance": 2.0 / line["server_round"], "loss-local": 1.0}
        line["diagnostics"][HOSTILE] = 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(run)
    assert "Diagnostics" in page.text and "Consensus distance" in page.text
    assert "Last: 0.4000." in page.text
    assert "loss-local" not in page.text  # a term of a sum whose other terms are missing
    rows = list(csv.DictReader((run / "curves.csv").read_text().splitlines()))
    for row, line in zip(rows, lines, strict=True):
        assert float(row["central.accuracy"]) == line["central"]["accuracy"]
        measured = line.get("diagnostics", {}).get("consensus-distance", "")
        assert row["diagnostics.consensus-distance"] == str(measured)
    assert not [path for path in run.iterdir() if path.suffix == ".tmp"]


def test_a_regression_is_told_by_its_error(fake_run):
    run = fake_run(task="regression", rounds=4)
    page, mse = report(run), [line["central"]["mse"] for line in metrics(run)]
    assert f"Final MSE {mse[-1]:#.4g}" in page.text
    assert f"Best MSE {min(mse):#.4g} round {mse.index(min(mse))};" in page.text
    assert "MSE (lower is better)" in page.text and "accuracy" not in page.text
    assert "tenths of the samples" in page.text


def test_the_page_needs_nothing_from_outside(fake_run):
    run = fake_run()
    page = report(run)
    for address in page.addresses:
        assert address.startswith(("#", "data:image/png;base64,")), address
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    html = (run / "report.html").read_text()
    assert "default-src 'none'" in html and "@import" not in html
    for target in re.findall(r"url\(([^)]*)\)", html):
        assert target.startswith("#")
    images = [a for a in page.addresses if a.startswith("data:")]
    assert base64.b64decode(images[-1].partition(",")[2]).startswith(b"\x89PNG")


def test_hostile_names_are_shown_and_not_obeyed(fake_run):
    run = fake_run(name=HOSTILE, rounds=3, clients=5)
    lines = metrics(run)
    for line in lines:
        line["rejected"] = {HOSTILE: 1}
        line["details"] = [HOSTILE]
        line["central"] = {HOSTILE: 0.5}
        line["per_client"] = {"client-index": [0.0, 1.0], HOSTILE: [0.5, 0.7]}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "overrides.txt").write_text(f"name={HOSTILE}\n")
    edit(run / "privacy.json", lambda c: c.update(statement=HOSTILE))
    edit(run / "summary.json", lambda c: c.update(status=HOSTILE))
    edit(run / "partition.json", lambda c: c.update(class_names=[HOSTILE, "$x^{$", "\ud800"] * 4))
    edit(run / "env.json", lambda c: c.update({HOSTILE: HOSTILE + "\ud800", "command": [HOSTILE]}))
    page = report(run)
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert page.text.count(HOSTILE) >= 8
    assert not [a for a in page.addresses if a.startswith("http")]


def test_the_privacy_statement_is_verbatim_and_no_epsilon_stands_alone(fake_run):
    run = fake_run(rounds=3)
    statement = "(8.0, 1e-05)-DP, unit: client,\n  add/remove one;  trusted server"
    edit(run / "privacy.json", lambda c: c.update(statement=statement))
    edit(run / "summary.json", lambda c: c.update(epsilon=7.77))
    lines = metrics(run)
    for line in lines:
        line["train"]["epsilon"] = 7.77
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(run).read_text()
    assert f'<p class="statement">{statement}</p>' in html
    assert "7.77" not in html


def test_a_run_that_goes_on(fake_run):
    run = fake_run(rounds=7, planned=50)
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"server_round": 8, "cent')
    page = report(run)
    assert "fedau_fashion unfinished" in page.text and "7 of 50 rounds" in page.text
    assert "Latest accuracy" in page.text and "Final accuracy" not in page.text
    assert "damaged" not in page.text


def test_a_diverged_run_says_where(fake_run):
    run = fake_run(rounds=6, per_client=False)
    lines = metrics(run)
    for line in lines[4:]:
        line["central"] = {"loss": float("nan"), "accuracy": 0.1}
        line["train"]["train-loss"] = 1e200
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(run)
    assert "1e200" not in page.text  # as the exponent of an axis
    assert "test loss: 3 of 7 measured rounds, first in round 4" in page.text
    assert "training train-loss: 3 of 6 measured rounds, first in round 4" in page.text
    assert "not a number" in page.text


@pytest.mark.parametrize("kept", [(), ("metrics.jsonl",), ("config.yaml", "partition.json")])
def test_whatever_is_missing_is_named(fake_run, kept):
    run = fake_run(rounds=2)
    names = ["config.yaml", "overrides.txt", "env.json", "metrics.jsonl", "partition.json"]
    for name in (*names, "privacy.json", "summary.json"):
        if name not in kept:
            (run / name).unlink()
    page = report(run)
    for name in names:
        assert (name not in kept) == bool(re.search(rf"{name}:? (is )?missing", page.text)), name
    assert "nothing may be claimed of this run's privacy" in page.text


@pytest.mark.parametrize(
    "line",
    [
        {"server_round": 0, "central": {"accuracy": 0.1}},
        {"server_round": 1},
        {"server_round": 1, "asked": 3, "rejected": {"error": 3}},
        {"server_round": 2**32 - 1, "asked": 1, "admitted": [2**32 - 1]},
        {"server_round": 1, "central": {"accuracy": None, "loss": None}},
        {"server_round": 1, "central": {"loss": 1e100}, "train": {"train-loss": -1e100}},
        {"server_round": 1, "per_client": {"client-index": [0.0], "accuracy": [None]}},
        {"server_round": 1, "train": {"train-loss": 0.5}, "seconds": 1e300},
    ],
)
def test_odd_single_rounds(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    report(tmp_path)


def test_a_large_run_stays_small_and_quick(fake_run):
    run = fake_run(clients=1000, rounds=1000)
    started = time.process_time()
    written = write_report(run)
    assert time.process_time() - started < 5.0
    assert written.stat().st_size < 3_000_000


def test_equal_folders_give_equal_reports(fake_run):
    run = fake_run(rounds=2, clients=3)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_reading_a_run_does_not_import_matplotlib():
    code = (
        "import sys, fedsim.report.run_folder, fedsim.report.measures, fedsim.report.curves_csv\n"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
