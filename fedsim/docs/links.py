"""Links of Markdown pages: between the checkout, where a page was written, and the site."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
_OUTSIDE = ("http://", "https://", "mailto:", "#")
RENAMED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "fedsim/deploy/README.md": "deploy.md",
}
"""Pages that lie elsewhere in the site than in the checkout."""


def moved(text: str, folder: Path) -> str:
    """Return a page whose links start from the top of the checkout, marked with a slash."""

    def one(match: re.Match[str]) -> str:
        target = match[2]
        if target.startswith(_OUTSIDE):
            return match[0]
        path, mark, anchor = target.partition("#")
        top = os.path.normpath(folder / path) if path else ""
        return f"{match[1]}(/{PurePosixPath(top).as_posix()}{mark}{anchor})"

    return _LINK.sub(one, text)


def within(text: str, page: str, made: Collection[str]) -> str:
    """Return a page whose links lead to other pages; those to code become code.

    Args:
        text: From `moved`, or with links that start with a slash.
        page: Its own path in the site.
        made: All pages.
    """
    start = PurePosixPath(page).parent.as_posix()

    def one(match: re.Match[str]) -> str:
        target = match[2]
        if not target.startswith("/"):
            return match[0]
        path, mark, anchor = target[1:].partition("#")
        place = RENAMED.get(path, path)
        if place not in made and f"{place}/README.md" in made:
            place = f"{place}/README.md"
        if place in made or place.endswith(".png"):
            return f"{match[1]}({os.path.relpath(place, start)}{mark}{anchor})"
        words = match[1].strip("![]")
        return f"`{path}`" if words.strip("`") == path else f"{words} (`{path}`)"

    return _LINK.sub(one, text)


def targets(text: str) -> list[str]:
    """Return what a page links to within the site."""
    return [m[2].partition("#")[0] for m in _LINK.finditer(text) if not m[2].startswith(_OUTSIDE)]
