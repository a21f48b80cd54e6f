"""Listings, read from the YAML files without importing what they describe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedsim import catalog
from fedsim.config import compose
from fedsim.config.keys import keys
from fedsim.config.specs import check, expand

TOY = Path(__file__).parent / "assets" / "toylab"
ROOT = TOY / "scenarios"
PACKAGED = [(group, e) for group in catalog.groups() for e in catalog.entries(group)]


def test_groups() -> None:
    assert catalog.groups()[:4] == ("data", "partition", "participation", "model")
    assert len(set(catalog.groups())) == len(catalog.groups()) >= 13


def test_entries_have_names_summaries_and_paths() -> None:
    found = catalog.entries("data", ROOT)
    assert [(e.name, e.summary) for e in found] == [
        ("rooted", ""),
        ("toy", "Toy data (nobody, 2026)"),
    ]
    assert found[1].path == ROOT / "data" / "toy.yaml"


def test_scenarios_leave_out_base() -> None:
    found = catalog.scenarios(ROOT)
    assert [e.name for e in found] == ["linked", "private"]
    assert found[1].summary == "A private run."


@pytest.mark.parametrize("group", ["nope", "", "..", "data/..", "/"])
def test_an_unknown_group_has_no_parts(group: str) -> None:
    assert catalog.entries(group, ROOT) == []


def test_damaged_files_do_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.yaml").mkdir()
    (tmp_path / "c.yaml").write_text("#   Spaced.  \nx: 1\n")
    (tmp_path / "d.yaml").write_text("")
    (tmp_path / "e.yml").write_text("# Not ours.")
    (tmp_path / "f.yaml").symlink_to(tmp_path / "missing")
    found = catalog.scenarios(tmp_path)
    assert [(e.name, e.summary) for e in found] == [("a", ""), ("c", "Spaced."), ("d", "")]
    assert catalog.scenarios(tmp_path / "missing") == []


def test_listing_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from fedsim import catalog; catalog.scenarios(); catalog.entries('data');"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'yaml', 'flwr', 'numpy'} & set(sys.modules)))"
    )
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
    run = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_keys_tell_type_default_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))
    found = {k.path: k for k in keys(compose("private", ["rounds=9"], root=ROOT))}
    rounds = found["rounds"]
    assert (rounds.type, rounds.default, rounds.value) == ("int in [1, 4294967296)", 50, 9)
    assert rounds.description == "How many rounds to run."
    alpha = found["partition.alpha"]
    assert (alpha.type, alpha.default, alpha.value) == ("float in (0, inf)", "???", 0.5)
    assert found["evaluation.clients"].type == "one of none, cohort, all"
    assert found["privacy.accountant.orders"].value == [2, 4], "parts inside parts are listed, too"
    assert found["privacy.sigma"].value == 3.0
    assert "evaluation" not in found
    assert next(iter(found)) == "name"
    assert found["plugins"].default == []


@pytest.mark.parametrize(
    ("group", "entry"), PACKAGED, ids=[f"{group}/{e.name}" for group, e in PACKAGED]
)
def test_every_packaged_part_says_what_it_is_and_fits_its_target(
    group: str, entry: catalog.Entry
) -> None:
    assert len(entry.summary) > 10, "the first line is a comment that describes the part"
    spec = OmegaConf.to_container(OmegaConf.load(entry.path), resolve=False)
    spec = expand(spec, group, ())
    if all(value != "???" and "${" not in str(value) for value in spec.values()):
        check(spec, group, ())


def test_every_mechanism_says_who_is_trusted() -> None:
    for entry in catalog.entries("privacy"):
        assert len(entry.trust) > 10, entry.path


def test_a_paper_is_what_stands_in_the_last_parentheses() -> None:
    def paper(summary: str) -> str:
        return catalog.Entry(name="x", summary=summary, path=Path("x.yaml")).paper

    assert paper("A: x (of y) (Li 2020, arXiv:1812.06127)") == "Li 2020, arXiv:1812.06127"
    assert paper("Images (sorted), (Zalando 2017); flat") == "Zalando 2017"
    assert paper("Images (28x28 pixels)") == ""
