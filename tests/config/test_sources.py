"""Where scenarios are found, what their files may hold, and which file sets which key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedsim.config import compose, sources
from fedsim.errors import ConfigError

TOY = Path(__file__).parent.parent / "assets" / "toylab"
ROOT = TOY / "scenarios"
EXTENDS = "defaults: [base, _self_]\n"


@pytest.fixture(autouse=True)
def _toylab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))


def write(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def refusal(scenario: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        compose(scenario, overrides, root=ROOT)
    assert type(raised.value) is ConfigError
    return str(raised.value)


def test_a_path_extends_our_base_and_uses_its_own_parts_first(tmp_path: Path) -> None:
    own = write(
        tmp_path / "my-study.v2.yaml",
        "defaults: [base, override /client: mine, override /data: toy, _self_]\nrounds: 5\n",
    )
    write(tmp_path / "client" / "mine.yaml", "_target_: toylab.Sgd\nlr: 0.7\n")
    write(tmp_path / "data" / "toy.yaml", "_target_: toylab.Data\nsize: 77\n")
    found = compose(own, root=ROOT).values
    assert (found["name"], found["rounds"]) == ("my-study.v2", 5)
    assert (found["client"]["lr"], found["data"]["size"]) == (0.7, 77)
    assert found["partition"]["num_clients"] == 100, "ours, as it has none of its own"
    assert compose(own, ["client=sgd"], root=ROOT).values["client"]["lr"] == 0.1
    assert compose(own, ["client=mine"], root=ROOT).values["client"]["lr"] == 0.7
    assert "available: mine, sgd" in refusal(own, "client=nope")


@pytest.mark.parametrize(
    "name",
    [
        "with space.yaml",
        "it's.yaml",
        "a,b.yaml",
        "a=b.yaml",
        "[x].yaml",
        "é.yaml",
        'q".yaml',
        "b\\c.yaml",
    ],
)
def test_odd_file_names_work(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's, a=[folder]"
    file = write(folder / name, EXTENDS + "rounds: 5\nname: x\n")
    assert compose(file, root=ROOT).values["rounds"] == 5
    message = refusal(write(folder / name, EXTENDS + "rounds: 0\nname: x\n"))
    assert message.endswith(f"(set in {file})")


def test_relative_paths_and_names_with_a_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here.yaml", EXTENDS + "rounds: 5\n")
    write(tmp_path / "sub" / "there.yaml", EXTENDS + "rounds: 0\n")
    monkeypatch.chdir(tmp_path)
    assert compose("here.yaml", root=ROOT).values["rounds"] == 5
    assert compose("./here.yaml", root=ROOT).values["rounds"] == 5
    assert compose("sub/../here.yaml", root=ROOT).values["rounds"] == 5
    assert refusal("sub/there.yaml").endswith("(set in sub/there.yaml)")


def test_the_packaged_folder_by_path_is_the_packaged_scenario() -> None:
    by_path = compose(str(ROOT / "private.yaml"), root=ROOT)
    assert by_path.values == compose("private", root=ROOT).values


def test_name_is_the_files_unless_it_is_set(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", EXTENDS + "name: dad\nrounds: 4\n")
    child = write(tmp_path / "child.yaml", "defaults: [parent, _self_]\nseed: 1\n")
    found = compose(child, root=ROOT).values
    assert (found["name"], found["rounds"]) == ("child", 4)
    assert compose(child, ["name=x"], root=ROOT).values["name"] == "x"
    assert compose(str(tmp_path / "parent.yaml"), root=ROOT).values["name"] == "dad"
    odd = write(tmp_path / "a b.yaml", EXTENDS)
    assert "rename the file or set name=" in refusal(odd)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("nope", "no scenario 'nope'; there are: linked, private"),
        ("privat", "no scenario 'privat'; did you mean 'private'?"),
        ("", "no scenario ''"),
        ("..", "no scenario '..'"),
        ("private ", "no scenario 'private '"),
        ("a\0b", "no scenario "),
        ("../nope", "scenario '../nope' does not exist"),
        ("./", "scenario './' is a folder"),
        ("nope.yaml", "scenario 'nope.yaml' does not exist"),
        ("/etc/passwd", "scenario '/etc/passwd': the file's name must end in .yaml"),
        ("a/b\0c.yaml", "scenario 'a/b\\x00c.yaml'"),
        ("/" + "x" * 5000, "scenario '/xxx"),
        ("~nobody-of-this-name/x.yaml", "scenario '~nobody-of-this-name/x.yaml'"),
    ],
)
def test_what_is_not_there_is_said_so(scenario: str, message: str) -> None:
    assert refusal(scenario).startswith(message)


BAD = {
    "rounds: [": "line 2: not valid YAML",
    "rounds: 1\nrounds: 2": "not valid YAML: found duplicate key rounds",
    "\x01": "not valid YAML",
    "rounds: !!python/object/apply:os.system [touch ran]": "could not determine a constructor",
    "rounds: !!python/object/apply:pathlib.Path [x]": "a PosixPath is not allowed here",
    "rounds: !!binary aGk=": "a bytes is not allowed here",
    "rounds: !!timestamp 2001-01-01": "not valid YAML",
    "rounds: 0x" + "f" * 9000: "the integer is too large",
    "rounds: " + "9" * 9000: "not valid YAML",
    "rounds: " + "[" * 3000 + "]" * 3000: "not valid YAML",
    "rounds: &a [*a]": "its aliases expand",
    "- a": "expected a mapping",
    "just text": "expected a mapping",
    "3": "expected a mapping",
    "hydra: {searchpath: ['pkg://antigravity']}": "key 'hydra' is not allowed",
    "hydra: {callbacks: {x: {_target_: os.system}}}": "key 'hydra' is not allowed",
    "defaults: 5": "defaults",
    "defaults: [nope]": "called 'nope'",
    "defaults: [base, override /client: nope]": "no client called 'nope'; available: sgd",
    "defaults: [base, override /client: ../client/sgd]": "client: '../client/sgd' is not a name",
    "defaults: [base, override /client: null]": "client: a run needs one",
    "defaults: [_self_, base]": "'_self_' must be the last",
    "defaults: [base, x@y: z]": "",
    "defaults: [base, bad]": "",
    "seed: 1": "a run needs one; extend 'base'",
    "null: 1": "not valid YAML: Incompatible key type",
    "1: 1": "unknown key '1'",
    "true: 1": "unknown key 'True'",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=[t[:40] for t in BAD])
def test_bad_files_are_refused_by_name(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "" if text.startswith(("-", "j", "3", "d", "seed")) else "defaults: [base, _self_]\n"
    Path("s.yaml").write_text(head + text)
    found = refusal("s.yaml")
    assert message in found
    assert "s.yaml" in found or ":" in found
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]
    assert "antigravity" not in sys.modules


def test_an_empty_file_and_a_file_without_self_are_what_they_say(tmp_path: Path) -> None:
    assert "expected a mapping" in refusal(write(tmp_path / "s.yaml", "# nothing\n"))
    file = write(tmp_path / "t.yaml", "defaults: [base]\nrounds: 4\n")
    assert compose(file, root=ROOT).values["rounds"] == 4, "its own keys still come last"


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"\xff\xfe\x00\x01")
    assert f"{file}: not a text file in UTF-8" in refusal(str(file))
    file.write_text("a: '" + "x" * 1_000_001 + "'")
    assert f"{file}: too large" in refusal(str(file))
    folder = tmp_path / "d.yaml"
    folder.mkdir()
    assert "is a folder" in refusal(str(folder))
    link = tmp_path / "l.yaml"
    link.symlink_to(tmp_path / "missing.yaml")
    assert "does not exist" in refusal(str(link))


def test_a_bad_file_among_the_defaults_is_refused_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", "defaults: [base, more, _self_]\n")
    for text in ("rounds: [", "\x01", "- a", "hydra: {searchpath: ['pkg://antigravity']}"):
        write(tmp_path / "more.yaml", text)
        message = refusal(file)
        assert "more" in message or "s.yaml" in message
    (tmp_path / "more.yaml").write_bytes(b"\xff\x00")
    assert "s.yaml" in refusal(file)
    assert "antigravity" not in sys.modules


def test_defaults_that_name_each_other_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", "defaults: [b, _self_]\n")
    write(tmp_path / "b.yaml", "defaults: [a, _self_]\n")
    assert "a.yaml" in refusal(a)
    own = write(tmp_path / "own.yaml", "defaults: [own, _self_]\n")
    assert "own.yaml" in refusal(own)


def test_aliases_that_explode_are_refused_before_they_do(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert "its aliases expand" in refusal(write(tmp_path / "s.yaml", "\n".join(lines)))


def test_parts_inside_a_scenario_file_replace_key_by_key(tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", EXTENDS + "client: {lr: 0.9}\n")
    assert compose(file, root=ROOT).values["client"]["lr"] == 0.9
    file = write(tmp_path / "s.yaml", EXTENDS + "partition: {_target_: toylab.Skewed, alpha: 2}\n")
    assert compose(file, root=ROOT).values["partition"]["alpha"] == 2.0
    file = write(tmp_path / "s.yaml", EXTENDS + "client: 5\n")
    assert "client: 5 is not a part" in refusal(file)
    file = write(tmp_path / "s.yaml", EXTENDS + "client: {nope: 1}\n")
    assert refusal(file).startswith(
        f"unknown key 'client.nope' (set in {file}, but the part is fro"
    )


def test_origin_is_the_last_file_that_sets_the_key() -> None:
    source = sources.find("private", ROOT)

    def origin(path: str, **choices: str) -> str | None:
        return sources.origin(source, choices, path)

    assert origin("rounds") == "scenarios/private.yaml"
    assert origin("seed") == "scenarios/base.yaml"
    assert origin("privacy.sigma") == "scenarios/private.yaml"
    assert origin("privacy.accountant.orders") == "scenarios/privacy/gaussian.yaml"
    assert origin("partition.alpha") == "scenarios/partition/skewed.yaml"
    assert origin("partition.num_clients", partition="iid") == "scenarios/partition/iid.yaml"
    assert origin("privacy.clip_norm") is None, "only the part's own default"
    assert origin("nope") is None
