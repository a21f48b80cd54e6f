"""The documentation site: a page for each algorithm, and no link that leads nowhere."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from fedsim import catalog
from fedsim.config import compose
from fedsim.config.composition import Loaded
from fedsim.docs import links, site, write
from fedsim.docs.algorithms import _target
from fedsim.errors import FedsimError
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
            commands = [words for words in printed(page) if f"{group}={entry.name}" in words]
            assert commands, "how to run it"
            assert f"{group}={entry.name}`" in pages[f"parts/{group}.md"]


def printed(page: str) -> list[list[str]]:
    """Return the commands of fedsim in the code blocks of a page, as a shell would read them."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("fedsim ")]


def test_every_command_that_a_page_prints_is_accepted(pages: dict[str, str]) -> None:
    commands = {shlex.join(words): words for page in pages.values() for words in printed(page)}
    checked = 0
    loaded: Loaded = {}
    refused = []
    for command, (_, verb, scenario, *overrides) in commands.items():
        assert verb in ("run", "plan", "deploy") and scenario.startswith("scenario="), command
        words = list(itertools.takewhile(lambda word: word[0] != "-", overrides))
        try:
            name = scenario.removeprefix("scenario=")
            config = compose(name, [*words, "device=cpu"], loaded=loaded)
            with warnings.catch_warnings(), closing(Simulation(config)) as simulation:
                warnings.simplefilter("ignore")
                simulation.loop  # noqa: B018  builds the parts, and checks that they fit
        except FedsimError as error:
            refused.append(f"{command}: {error}")
        checked += 1
    assert not refused, "\n".join(refused)
    assert checked > 50


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
