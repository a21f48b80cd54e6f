"""The documentation site, made from what is written once: module headers, YAML files, READMEs.

`python -m fedsim.docs build/docs` writes Markdown pages and a `mkdocs.yml`; then
`mkdocs build --strict -f build/docs/mkdocs.yml` (extra: docs) makes the site. Nothing is imported
that a page describes: headers and fields are read from the source.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from fedsim import catalog
from fedsim.docs import algorithms, concepts, links
from fedsim.files import write_atomic

HOME = catalog.ROOT.parent

Pages = dict[str, str]
"""Path in the site -> Markdown."""


def write(out: Path) -> list[Path]:
    """Write the site's sources; return the pages.

    Args:
        out: A folder of its own; what an earlier call wrote there is replaced.
    """
    pages, nav = site()
    docs = out / "docs"
    if docs.is_dir():
        shutil.rmtree(docs)
    for name, text in pages.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(docs / name, text.encode())
    for picture in sorted((HOME / "results").rglob("*.png")):
        place = docs / picture.relative_to(HOME)
        if "runs" not in picture.parts and place.parent.is_dir():
            shutil.copy(picture, place)
    settings = {
        "site_name": "fedsim",
        "site_url": "",
        "docs_dir": "docs",
        "theme": {"name": "material", "font": False},
        "use_directory_urls": False,
        "plugins": ["search"],
        "markdown_extensions": ["tables", "fenced_code"],
        "validation": {"links": {"not_found": "warn", "anchors": "warn"}},
        "nav": nav,
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_atomic(out / "mkdocs.yml", text.encode())
    return [docs / name for name in pages]


def site() -> tuple[Pages, list[object]]:
    """Return all pages, and the navigation."""
    pages: Pages = {"index.md": _own("README.md"), "contributing.md": _own("CONTRIBUTING.md")}
    pages["changelog.md"] = _own("CHANGELOG.md")
    results = {
        path.relative_to(HOME).as_posix(): path
        for path in sorted((HOME / "results").rglob("*.md"))
        if not {"runs", "sweeps", "reports", "export"} & set(path.parts)
    }
    pages |= {name: _own(name) for name in results}
    pages |= {"deploy.md": _own("fedsim/deploy/README.md")}
    ideas = concepts.pages(HOME)
    strategies, mechanisms = (algorithms.pages(HOME, g) for g in ("strategy", "privacy"))
    parts = {f"parts/{group}.md": algorithms.listing(group) for group in _listed()}
    pages |= {**ideas, **strategies, **mechanisms, **parts}
    made = set(pages)
    pages = {name: links.within(text, name, made) for name, text in pages.items()}
    nav: list[object] = [
        {"Start": "index.md"},
        {"Concepts": list(ideas)},
        {"Strategies": ["parts/strategy.md", *strategies]},
        {"Privacy": ["parts/privacy.md", *mechanisms]},
        {"All parts": [n for n in parts if n not in ("parts/strategy.md", "parts/privacy.md")]},
        {"Results": list(results)},
        {"Deploying": "deploy.md"},
        {"Contributing": ["contributing.md", "changelog.md"]},
    ]
    return pages, nav


def _listed() -> Mapping[str, None]:
    return dict.fromkeys(["scenarios", *catalog.GROUPS, *catalog.APART])


def _own(name: str) -> str:
    """Return a Markdown file of ours, its links still relative to where it lies."""
    text = (HOME / name).read_text(encoding="utf-8")
    return links.moved(text, Path(name).parent)
