"""`fedsim deploy --write`: everything that real hosts need, in one folder to carry from.

DIR/README.md                     what to do, in order
DIR/superlink/                    for the server: certificates, start.sh, a systemd unit
DIR/device-0/ ...                 for each device: its key, the authority's certificate, start.sh
DIR/operator/                     stays here: config.toml (FLWR_HOME), public keys, scenario.yaml
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from fedsim.config import Config
from fedsim.deploy import commands, credentials
from fedsim.deploy.commands import ENVIRONMENT, Link
from fedsim.deploy.credentials import AUTHORITY
from fedsim.errors import ConfigError

NAME = "federation"
"""The SuperLink's name in the operator's config.toml: what to type after --to."""

_HERE = Path("$HERE")

_SCRIPT = """\
#!/bin/sh
# {what} Needs fedsim's environment on the PATH, and nothing outside this folder.
HERE="$(cd "$(dirname "$0")" && pwd)" && cd "$HERE" || exit 1
export {environment}
exec {command}
"""

_UNIT = """\
# {what}
# Put this folder at /opt/fedsim/{folder} and fedsim's environment at /opt/fedsim/.venv, then:
#   systemctl enable --now /opt/fedsim/{folder}/{name}.service
[Unit]
Description=fedsim {name}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Environment=PATH=/opt/fedsim/.venv/bin:/usr/local/bin:/usr/bin:/bin
ExecStart=/bin/sh /opt/fedsim/{folder}/start.sh
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def write(
    folder: Path, config: Config, *, hosts: Sequence[str], port: int, num_devices: int, secure: bool
) -> None:
    """Write a deployment's files.

    Args:
        folder: Where to; must not exist yet, or be empty.
        config: The scenario to run.
        hosts: How devices reach the SuperLink, the first one first; all are in its certificate.
        port: Of the SuperLink.
        num_devices: How many device folders to write.
        secure: TLS and registered devices only.

    Raises:
        ConfigError: The folder holds something, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--write {folder}: it is not empty; name a new folder")
        _write(folder.resolve(), config, hosts, port, num_devices, secure)
    except OSError as error:
        raise ConfigError(f"--write {folder}: {error.strerror}; name another folder") from error


def _write(
    folder: Path, config: Config, hosts: Sequence[str], port: int, num_devices: int, secure: bool
) -> None:
    superlink, operator = folder / "superlink", folder / "operator"
    here = _HERE if secure else None
    link = Link(host=hosts[0], port=port, bind=commands.bind(hosts), credentials=here)
    operator.mkdir()
    if secure:
        credentials.write_certificates(superlink, hosts)
        shutil.copy(superlink / AUTHORITY, operator / AUTHORITY)
    else:
        superlink.mkdir()
    start = commands.superlink(link, _HERE / "state.db")
    _start(superlink, "fedsim-superlink", "Starts the SuperLink.", start)
    for k in range(num_devices):
        device = folder / f"device-{k}"
        device.mkdir()
        if secure:
            credentials.write_node_key(device / "key")
            shutil.move(device / "key.pub", operator / f"device-{k}.pub")
            shutil.copy(superlink / AUTHORITY, device / AUTHORITY)
        key = _HERE / "key" if secure else None
        # One port for all: each device has a loopback of its own.
        start = commands.supernode(link, {"partition-id": k}, port=9094, key=key)
        _start(device, "fedsim-supernode", f"Starts the SuperNode of device {k}.", start)
    reached = Link(host=hosts[0], port=port, bind="", credentials=operator if secure else None)
    (operator / "config.toml").write_text(commands.connection(NAME, reached), encoding="utf-8")
    (operator / "scenario.yaml").write_text(config.to_yaml(), encoding="utf-8")
    if secure:
        _script(operator / "register.sh", _registration(num_devices))
    (folder / "README.md").write_text(_runbook(folder, num_devices, secure), encoding="utf-8")


def _start(folder: Path, name: str, what: str, command: Sequence[str]) -> None:
    variables = " ".join(f"{key}={value}" for key, value in ENVIRONMENT.items())
    words = " ".join(f'"{w}"' if w.startswith("$HERE") else shlex.quote(w) for w in command)
    _script(folder / "start.sh", _SCRIPT.format(what=what, environment=variables, command=words))
    unit = _UNIT.format(what=what, folder=folder.name, name=name)
    (folder / f"{name}.service").write_text(unit, encoding="utf-8")


def _registration(num_devices: int) -> str:
    return f"""\
#!/bin/sh
# Lets this deployment's devices in: registers their public keys with the SuperLink, once.
HERE="$(cd "$(dirname "$0")" && pwd)" || exit 1
export FLWR_HOME="$HERE" {" ".join(f"{k}={v}" for k, v in ENVIRONMENT.items())}
k=0
while [ $k -lt {num_devices} ]; do
    flwr supernode register "$HERE/device-$k.pub" {NAME} --name "device-$k" || exit 1
    k=$((k + 1))
done
"""


def _script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _runbook(folder: Path, num_devices: int, secure: bool) -> str:
    name = shlex.quote(str(folder))
    register = f"""
3. Here: let the devices in (once; the SuperLink remembers them in state.db).

       sh {name}/operator/register.sh
"""
    warning = """
**Plain text, and any device is let in.** For loopback only; write it again without --insecure.
"""
    secrets = """
`superlink/server.key` and `device-*/key` are secrets: carry them over a channel that you trust, and
remove them here afterwards. The authority's private key was never written, so that nobody can issue
another certificate; certificates are valid for a year, then write a new folder.
"""
    return f"""\
# How to run this federation
{"" if secure else warning}
fedsim must be installed, in the same version, on the server, on each device and here, and its
environment be on the PATH. Nothing is installed when a run starts.

1. Carry `superlink/` to the server, and `device-K/` to device K (0..{num_devices - 1}).

2. On the server: `sh superlink/start.sh`, or install `superlink/fedsim-superlink.service`.
{register if secure else ""}
{4 if secure else 3}. On device K: `sh device-K/start.sh`, or install
   `device-K/fedsim-supernode.service`. A device with data of its own adds its place to
   --node-config there, for example 'partition-id=0 data.root="/srv/data"', and the scenario then
   says `partition=whole`.

{5 if secure else 4}. Here: run.

       FLWR_HOME={name}/operator fedsim deploy scenario={name}/operator/scenario.yaml --to {NAME}

   The run's folder is on the server, under `superlink/results/runs`. A run that was interrupted
   goes on with `--resume` and that folder.

Check: `FLWR_HOME={name}/operator flwr supernode list {NAME}` shows who is connected, and
`flwr ls {NAME}` the runs.
{secrets if secure else ""}"""
