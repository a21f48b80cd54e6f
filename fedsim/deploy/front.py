"""The three forms of `fedsim deploy`, each from what was typed to what is printed at the end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from fedsim.config import Config
from fedsim.deploy import commands, runbook
from fedsim.deploy.sitting import Sitting, configure, resumed_config, run_locally
from fedsim.deploy.submission import SuperLink
from fedsim.errors import ConfigError
from fedsim.progress import Display
from fedsim.results import RunFolder
from fedsim.simulation import Simulation
from fedsim.smoke import Smoke

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?")

Words = tuple[str, list[str]] | None
"""(scenario, overrides) as typed; None where a run folder says it all."""


def on_loopback(
    words: Words,
    nodes: int,
    secure: bool,
    resume: str | None,
    extend: int,
    smoke: bool,
    display: Display,
) -> str:
    """`--local N`: start everything here, run, take everything down.

    Raises:
        FedsimError: It cannot be run, or ended early.
    """
    if resume is not None:
        if words is not None:
            raise ConfigError("--resume: the run's folder says the scenario; leave it out")
        folder = RunFolder.open(Path(resume))
        config = resumed_config(folder)
        check(config, nodes, smoke=False)
    else:
        config = configure(*_given(words), nodes)
        check(config, nodes, smoke=smoke)
        folder = RunFolder.create(config, smoke=smoke)
    path = folder.path.resolve()
    command = f"fedsim deploy --resume {shlex.quote(str(path))} --local {nodes}"
    sitting = Sitting(
        config=config, smoke=smoke, folder=str(path), extend=extend, how_to_resume=command
    )
    run_locally(sitting, nodes, secure=secure, display=display)
    return f"run:     {folder.path}\nreport:  {folder.path / 'report.html'}"


def on_superlink(
    words: Words,
    name: str,
    devices: int | None,
    resume: str | None,
    extend: int,
    smoke: bool,
    display: Display,
) -> str:
    """`--to NAME`: submit to a SuperLink that is there, and follow the run.

    Raises:
        FedsimError: It cannot be run, or ended early.
    """
    scenario, overrides = _given(words)
    config = configure(scenario, overrides, devices)
    where = ["--to", name] if devices is None else ["--to", name, "--devices", str(devices)]
    typed = shlex.join([f"scenario={scenario}", *overrides, *where])
    sitting = Sitting(
        config=config,
        smoke=smoke,
        folder=resume or "",
        extend=extend,
        how_to_resume=f"fedsim deploy {typed} --resume {shlex.quote(resume or 'RUN')} (RUN: its "
        "folder on the SuperLink's host, under results/runs)",
    )
    path = sitting.on(SuperLink(name=name), display)
    return f"run:     {path} (on the SuperLink's host)"


def write(
    folder: Path,
    words: Words,
    hosts: Sequence[str],
    port: int,
    devices: int | None,
    secure: bool | None,
) -> str:
    """`--write DIR`: write what real hosts need.

    Raises:
        ConfigError: The scenario cannot be run, or the folder not be written.
    """
    for host in hosts:
        if not _HOST.fullmatch(host) and not commands.is_address(host):
            raise ConfigError(
                f"--host {host}: expected a name or an address alone, e.g. fl.example.org, 10.0.0.5"
            )
    config = configure(*_given(words), devices)
    num_clients = check(config, None, smoke=False)
    loopback = all(map(commands.is_loopback, hosts))
    if secure is False and not loopback:
        raise ConfigError(
            f"--insecure: {', '.join(hosts)} is not loopback, and anybody on the way could read "
            "and change models, and join as a device; leave --insecure out"
        )
    count = devices or num_clients
    if count > 1000:
        raise ConfigError(f"--devices: the scenario has {count:,} clients; say how many devices")
    secure = not loopback if secure is None else secure
    runbook.write(folder, config, hosts=hosts, port=port, num_devices=count, secure=secure)
    return f"written: {folder}\nnext:    {folder / 'README.md'}"


def check(config: Config, devices: int | None, *, smoke: bool) -> int:
    """Build what can be built before anything is started, so that mistakes are told at once.

    Args:
        config: The run.
        devices: How many there will be; None: not known.
        smoke: Cut it down.

    Returns:
        How many clients it has.

    Raises:
        ConfigError: A part of the scenario cannot be made, or there are too few devices.
    """
    simulation = Simulation(config, Smoke() if smoke else None)
    simulation.check()
    count = simulation.partition.num_clients
    needed = config.values["engine"]["min_clients"] or count
    if devices is not None and devices < needed:
        raise ConfigError(
            f"--local {devices}: {needed} of {count} clients are needed before the first round; "
            f"give --local {count}, or lower engine.min_clients"
        )
    return count


def _given(words: Words) -> tuple[str, list[str]]:
    if words is None:
        raise ConfigError("--resume: only --local takes the scenario from the run's folder; add it")
    return words
