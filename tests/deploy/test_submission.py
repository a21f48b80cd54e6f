"""A SuperLink through Flower's command line, with a program that stands for it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedsim.deploy import submission
from fedsim.deploy.submission import BUNDLE, SuperLink, SuperLinkError
from fedsim.errors import ConfigError
from tests.deploy._flwr import Flwr

LINK = SuperLink(name="federation", home=Path("/home of/flower"))


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flwr:
    return Flwr(tmp_path, monkeypatch)


def line(number: int) -> str:
    return f'fedsim: {{"number": {number}}}\n'


def test_a_run_is_submitted_with_its_configuration_in_a_file(flwr: Flwr) -> None:
    scenario = '{"config": "a: \\"b\\"\\n# üñï 🙂 \x7f\'\'\' \\\\"}'
    assert LINK.submit(scenario, folder="/srv/a run", extend=9) == 7
    ((words, home, config),) = flwr.asked
    assert words[:3] == ["run", str(BUNDLE), "federation"]
    assert words[3] == "--run-config" and words[-2:] == ["--format", "json"]
    assert home == "/home of/flower"
    told = {"scenario": scenario, "run-folder": "/srv/a run", "extend": 9}
    assert tomllib.loads(config) == told
    assert not Path(words[4]).exists(), "what it wrote is gone"


def test_the_bundle_declares_what_is_submitted_and_names_what_exists() -> None:
    import ast
    import importlib

    bundle = tomllib.loads((BUNDLE / "pyproject.toml").read_text())
    app = bundle["tool"]["flwr"]["app"]
    assert app["config"] == {"scenario": "", "run-folder": "", "extend": 0}
    assert bundle["project"]["dependencies"] == ["flwr"]
    for target in app["components"].values():
        module, _, name = target.partition(":")
        source = Path(str(importlib.import_module(module).__file__)).read_text()
        assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        assert any(isinstance(t, ast.Name) and t.id == name for a in assigned for t in a.targets)


def test_follow_yields_our_lines_until_the_run_is_over(flwr: Flwr) -> None:
    flwr.statuses("pending", "running", "finished:completed")
    flwr.logs("starting\n", f"INFO\n{line(1)}noise\n", f"INFO\n{line(1)}noise\n{line(2)}end\n")
    assert list(LINK.follow(7)) == [{"number": 1}, {"number": 2}]
    assert flwr.verbs() == ["ls", "log"] * 3
    assert flwr.asked[1][0] == ["log", "7", "federation", "--stream"]


def test_a_stream_that_breaks_is_opened_again_and_nothing_is_lost_or_said_twice(flwr: Flwr) -> None:
    flwr.statuses(*["running"] * 4, "finished:failed")
    everything = [line(k) for k in range(6)]
    cut = [2, 0, 4, 3, 6]  # it breaks anywhere, also before what was seen already
    flwr.logs(*["".join(everything[:n]) + 'fedsim: {"num' for n in cut])
    assert [said["number"] for said in LINK.follow(7)] == list(range(6))


def test_what_is_said_last_is_read_though_the_run_is_over_by_then(flwr: Flwr) -> None:
    flwr.statuses("finished:completed")
    flwr.logs(line(1))
    assert list(LINK.follow(7)) == [{"number": 1}]


def test_leaving_off_ends_the_stream(flwr: Flwr, monkeypatch: pytest.MonkeyPatch) -> None:
    flwr.statuses("running")
    flwr.logs(f"{line(1)}WAIT\n")
    opened = []
    make = submission._Lines

    def noted(*args: object) -> object:
        opened.append(make(*args))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(submission, "_Lines", noted)
    following = LINK.follow(7)
    assert next(following) == {"number": 1}
    assert opened[0].process.poll() is None
    following.close()  # type: ignore[attr-defined]
    assert opened[0].process.poll() is not None


def test_status_stop_and_register(flwr: Flwr, tmp_path: Path) -> None:
    flwr.statuses("finished:stopped")
    flwr.answer("supernode", {"success": True})
    assert LINK.status(7) == ("finished:stopped", "as Flower puts it")
    LINK.stop(7)
    LINK.register(tmp_path / "device-0.pub")
    assert [words[:-2] for words, _, _ in flwr.asked] == [
        ["ls", "federation", "--run-id", "7"],
        ["stop", "7", "federation"],
        ["supernode", "register", str(tmp_path / "device-0.pub"), "federation"],
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"success": false, "error-message": "no such run"}', "no such run"),
        ("STDERRthe connection\n  was refused\n", "the connection was refused"),
        ("", "it did not answer"),
        ("{torn", "it did not answer"),
    ],
)
def test_what_flower_refuses_is_told(flwr: Flwr, answer: str, said: str) -> None:
    (flwr.folder / "stop").write_text(answer)
    with pytest.raises(SuperLinkError, match=f"SuperLink federation cannot do 'flwr stop': {said}"):
        LINK.stop(7)


def test_a_name_that_is_not_in_the_users_file_is_a_mistake_of_configuration(flwr: Flwr) -> None:
    flwr.answer(
        "run",
        {"success": False, "error-message": "SuperLink connection 'federation' not found in\n"
                                            "/home/me/.flwr/config.toml."},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"--to federation: .*config\.toml names no such"):
        LINK.submit("{}")
