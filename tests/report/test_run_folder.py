import json

import numpy as np
import pytest

from fedsim.errors import ConfigError
from fedsim.report.run_folder import RunData

FILES = (
    "config.yaml",
    "overrides.txt",
    "env.json",
    "metrics.jsonl",
    "partition.json",
    "privacy.json",
)


def test_a_whole_folder(fake_run):
    data = RunData.read(fake_run(clients=7, rounds=5))
    assert data.problems == ()
    assert data.name == "fedau_fashion" and data.planned_rounds == 5 and data.num_clients == 7
    assert data.setting("strategy._target_") == "strategies.fedau.FedAU"
    assert data.setting("strategy.cutoff.deeper") is None and data.setting("nothing") is None
    assert data.overrides == ("strategy=fedau", "rounds=5")
    assert data.environment["versions"]["torch"] == "2.13.0"
    assert data.rounds.last == 5 and data.summary["status"] == "finished"
    assert data.privacy.startswith("none: no privacy mechanism")
    assert data.holdings.histogram_KC.shape == (7, 10)
    np.testing.assert_array_equal(data.holdings.histogram_KC.sum(1), data.holdings.size_K)


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is not a folder; give a run folder"):
        RunData.read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(fake_run, name):
    run = fake_run()
    (run / name).unlink()
    problems = RunData.read(run).problems
    assert len(problems) == 1 and problems[0].startswith(name) and "missing" in problems[0]


def test_a_run_without_a_summary_is_going_on_and_not_damaged(fake_run):
    run = fake_run()
    (run / "summary.json").unlink()
    data = RunData.read(run)
    assert data.summary == {} and data.problems == ()


@pytest.mark.parametrize("name", ["env.json", "partition.json", "privacy.json", "summary.json"])
@pytest.mark.parametrize("content", ["{", "[1, 2]", "[" * 100_000, "\0", "nul"])
def test_a_damaged_file_is_named(fake_run, name, content):
    run = fake_run()
    (run / name).write_text(content)
    assert RunData.read(run).problems == (f"{name} is damaged or unfinished",)


def test_an_unreadable_configuration_is_still_shown_as_it_stands(fake_run):
    run = fake_run()
    (run / "config.yaml").write_text("name: [unclosed\n")
    data = RunData.read(run)
    assert len(data.problems) == 1 and data.problems[0].startswith("config.yaml, line 2")
    assert data.config == {} and data.config_text == "name: [unclosed\n"
    assert data.name == "run"  # the folder's


@pytest.mark.parametrize(
    "change",
    [
        {"histogram": [[1, 2], [3]]},
        {"histogram": []},
        {"histogram": [[-1, 2]]},
        {"histogram": [[0.5, 2]]},
        {"histogram": [["a", "b"]]},
        {"histogram": [[10**30, 1]]},
        {"histogram": [[2**40, 1]]},
        {"sizes": 3},
        {"num_clients": 1},
        {"num_clients": "many"},
        {"num_clients": 2**32},
        {"class_names": "abc"},
    ],
)
def test_a_partition_that_is_no_partition(fake_run, change):
    run = fake_run(clients=3)
    content = json.loads((run / "partition.json").read_text())
    (run / "partition.json").write_text(json.dumps(content | change))
    data = RunData.read(run)
    assert data.holdings is None
    assert len(data.problems) == 1 and "partition.json does not hold" in data.problems[0]


@pytest.mark.parametrize(
    ("names", "shown"), [(["a", "b", "c"], ("a", "b")), (["a"], ()), ([], ()), (None, ())]
)
def test_class_names_fit_the_classes_that_are_held(fake_run, names, shown):
    run = fake_run(clients=1)
    content = {"num_clients": 1, "histogram": [[4, 2]], "class_names": names}
    (run / "partition.json").write_text(json.dumps(content))
    holdings = RunData.read(run).holdings
    assert holdings.class_names == shown and holdings.size_K.tolist() == [6]


def test_a_flipped_or_cut_byte_anywhere_never_raises(fake_run):
    run = fake_run(clients=4, rounds=3)
    rng = np.random.default_rng(0)
    for name in (*FILES, "summary.json"):
        whole = (run / name).read_bytes()
        for _ in range(25):
            at = int(rng.integers(len(whole)))
            flipped = bytes([whole[at] ^ (1 << int(rng.integers(8)))])
            (run / name).write_bytes(whole[:at] + flipped + whole[at + 1 :])
            RunData.read(run)
            (run / name).write_bytes(whole[:at])
            RunData.read(run)
        (run / name).write_bytes(whole)
