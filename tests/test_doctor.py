"""`fedsim doctor`: what it looks at, and what it says of what is wrong."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim import doctor
from fedsim.cli import app


def found(topic: str) -> list[doctor.Finding]:
    return [finding for finding in doctor.examine() if finding.topic == topic]


def test_a_machine_that_runs_the_tests_is_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stdout
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    topics = [each["topic"] for each in told]
    for topic in ("python", "packages", "device", "threads", "ray", "deploy", "tls", "data"):
        assert topic in topics
        assert topic in result.stdout
    assert f"torch {metadata.version('torch')}" in result.stdout
    assert not [each for each in told if each["level"] == "problem"]


def test_a_data_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "nowhere"))
    (finding,) = found("data")
    assert finding.level == "problem"
    assert "is no folder" in finding.words
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "PROBLEM  data" in result.stdout


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("opacus", "cryptography"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.sys, "executable", "/nowhere/python")
    told = {(f.topic, f.level): f.words for f in doctor.examine()}
    assert "missing: opacus; pip install" in told["packages", "problem"]
    assert "pip install cryptography" in told["tls", "problem"]
    assert "engine=ray" in told["ray", "note"]
    assert "no fedsim deploy" in told["deploy", "note"]


def test_where_runs_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *words: False)
    (finding,) = found("runs")
    assert finding.level == "problem"
    assert "set output.root=" in finding.words
