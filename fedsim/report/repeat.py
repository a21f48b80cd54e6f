"""The part of the report from which a run can be repeated: command, machine, settings."""

from __future__ import annotations

import shlex

from fedsim.report import page
from fedsim.report.page import Html
from fedsim.report.run_folder import RunData

_LONGEST = 200_000
"""Characters of one file that are shown; a report must open in any browser."""


def repeat(data: RunData) -> Html:
    """Return how to run it again."""
    parts: list[str] = []
    command = _command(data)
    if command:
        parts += [page.element("p", "The command as it was typed:"), _code(command)]
    if data.config_text:
        again = "The resolved configuration alone says the same; in this folder:"
        deployed = "_target_: fedsim.engines.deployment.Deployment" in data.config_text
        how = "fedsim deploy {} --local N" if deployed else "fedsim run {}"
        parts += [page.element("p", again), _code(how.format("scenario=./config.yaml"))]
    if data.overrides:
        parts += [page.element("h3", "Overrides"), _code("\n".join(data.overrides))]
    if data.environment:
        parts += [page.element("h3", "Environment"), page.facts(_environment(data))]
    if data.config_text:
        parts.append(page.details("Resolved configuration (config.yaml)", _code(data.config_text)))
    if not parts:
        parts = [page.element("p", "Neither the command nor the configuration can be read.")]
    return page.section("To repeat this run", *parts)


def bottom(data: RunData) -> Html:
    """Return where the figures came from."""
    return page.element(
        "footer",
        "Made by fedsim from the files of the run folder ",
        page.element("code", data.path.resolve().name),
        "; the figures behind the curves are in ",
        page.element("code", "curves.csv"),
        " beside this file.",
    )


def _code(content: str) -> Html:
    if len(content) > _LONGEST:
        content = content[:_LONGEST] + "\n... (cut here; the file holds the rest)"
    return page.element("pre", content.rstrip("\n"))


def _command(data: RunData) -> str:
    command = data.environment.get("command")
    if isinstance(command, list):
        return shlex.join(str(word) for word in command)
    return command if isinstance(command, str) else ""


def _environment(data: RunData) -> dict[str, str]:
    pairs = {}
    for name, value in data.environment.items():
        if name == "command":
            continue
        shown = _commit(value) if name == "git" and isinstance(value, dict) else _words(value)
        cut = shown if len(shown) <= 2000 else shown[:2000] + " ... (cut; all of it is in env.json)"
        pairs[name.replace("_", " ")] = cut
    return pairs


def _commit(git: dict[str, object]) -> str:
    commit = str(git.get("commit", "unknown commit"))
    return f"{commit}, with changes that are not committed" if git.get("changed") else commit


def _words(value: object, depth: int = 0) -> str:
    if depth > 8:
        return "..."
    if isinstance(value, dict):
        return (
            ", ".join(f"{key} {_words(inner, depth + 1)}" for key, inner in value.items())
            or "unknown"
        )
    if isinstance(value, list):
        return ", ".join(_words(inner, depth + 1) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
