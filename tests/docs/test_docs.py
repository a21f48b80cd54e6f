"""The documentation site: a page for each algorithm, and no link that leads nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from fedsim import catalog
from fedsim.config import compose
from fedsim.docs import links, site, write
from fedsim.docs.algorithms import _target
from fedsim.simulation import Simulation


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return site()[0]


def test_every_link_leads_to_a_page_a_picture_or_out(pages: dict[str, str]) -> None:
    home = catalog.ROOT.parent
    count = 0
    for name, text in pages.items():
        for target in links.targets(text):
            where = os.path.normpath(f"{Path(name).parent.as_posix()}/{target}")
            picture = where.endswith(".png") and (home / where).is_file()
            assert where in pages or picture, f"{name}: {target}"
            count += 1
    assert count > 50


def test_every_algorithm_of_ours_has_its_page(pages: dict[str, str]) -> None:
    for group in ("strategy", "privacy"):
        for entry in catalog.entries(group):
            module = _target(entry).rpartition(".")[0]
            if not module.startswith(("strategies.", "privacy.")):
                continue
            page = pages[f"{group}/{module.rpartition('.')[2]}.md"]
            assert f"## `{group}={entry.name}`" in page
            assert "```text" in page, "its header, with the update rule"
            assert f"Source: `{module.replace('.', '/')}.py`" in page
            assert any(f"{group}={entry.name}" in words for words in _commands(page))
            assert f"{group}={entry.name}`" in pages[f"parts/{group}.md"]


def _commands(page: str) -> list[list[str]]:
    """Return the words of the commands that a page of an algorithm says to type."""
    return [line.split()[2:] for line in page.split("\n") if re.match("fedsim (run|plan) ", line)]


def test_what_the_pages_say_to_type_is_not_refused(pages: dict[str, str]) -> None:
    count = 0
    for name, page in pages.items():
        if not name.startswith(("strategy/", "privacy/")):
            continue
        for words in _commands(page):
            scenario = words[0].removeprefix("scenario=")
            simulation = Simulation(compose(scenario, [*words[1:], "device=cpu"]))
            assert simulation.loop.last_round >= 1, words
            count += 1
    assert count > 50


def test_a_page_shows_the_result_of_its_algorithm(pages: dict[str, str]) -> None:
    page = pages["strategy/fedau.md"]
    assert "![Test accuracy over rounds](../results/fedau/fedau.png)" in page
    assert "[arXiv:2306.03401](https://arxiv.org/abs/2306.03401)" in page
    assert "Differs from the paper:" in page


def test_all_pages_are_in_the_navigation(pages: dict[str, str]) -> None:
    found: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, str):
            found.append(node)
        elif isinstance(node, dict):
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(site()[1])
    assert sorted(found) == sorted(pages)


def test_the_sources_are_written_and_old_pages_go(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "old.md").write_text("x")
    made = write(tmp_path)
    assert all(page.is_file() for page in made)
    assert not (tmp_path / "docs" / "old.md").exists()
    assert (tmp_path / "docs" / "results" / "fedau" / "fedau.png").is_file()
    assert yaml.safe_load((tmp_path / "mkdocs.yml").read_text())["nav"][0] == {"Start": "index.md"}


def test_links_between_the_checkout_and_the_site() -> None:
    text = links.moved("[a](../README.md#x) ![p](p.png) [c](x.py) [o](https://x.org)", Path("r/s"))
    assert text == "[a](/r/README.md#x) ![p](/r/s/p.png) [c](/r/s/x.py) [o](https://x.org)"
    text = links.within("[a](/README.md#x) [`x.py`](/x.py) [code](/y.py)", "d/p.md", {"index.md"})
    assert text == "[a](../index.md#x) `x.py` code (`y.py`)"
