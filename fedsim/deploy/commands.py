"""The commands that start Flower's long-lived processes, and the file that leads to a SuperLink.

One place for both uses: what `fedsim deploy --local` starts, and what `--write` writes down.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.deploy.credentials import AUTHORITY, CERTIFICATE, KEY

ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Of every process of Flower's that we start."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """How a SuperLink is reached.

    Attributes:
        host, port: As devices and operators reach it.
        bind: The address that it listens at.
        credentials: The folder of its certificates; None: plain text, nobody proves anything.
    """

    host: str
    port: int
    bind: str
    credentials: Path | None

    @property
    def address(self) -> str:
        """Return host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host can only be this machine."""
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"


def is_address(host: str) -> bool:
    """Whether a host is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def bind(hosts: Sequence[str]) -> str:
    """Return the address at which a SuperLink listens, of the first host's kind: IPv4 or IPv6."""
    if not all(map(is_loopback, hosts)):
        return "::" if ":" in hosts[0] else "0.0.0.0"  # noqa: S104
    return "::1" if ":" in hosts[0] else "127.0.0.1"


def superlink(link: Link, database: Path) -> list[str]:
    """Return the command that starts a SuperLink.

    Args:
        link: Where.
        database: Keeps registered devices over a restart.
    """
    command = [
        "flower-superlink",
        *("--host", link.bind, "--port", str(link.port)),
        *("--database", str(database)),
        # What is installed on each machine is what runs; nothing is fetched when a run starts.
        "--disable-runtime-dependency-installation",
    ]
    if link.credentials is None:
        return [*command, "--insecure"]
    return [
        *command,
        *("--ssl-ca-certfile", str(link.credentials / AUTHORITY)),
        *("--ssl-certfile", str(link.credentials / CERTIFICATE)),
        *("--ssl-keyfile", str(link.credentials / KEY)),
        "--enable-supernode-auth",
    ]


def supernode(
    link: Link, config: Mapping[str, int | str], *, port: int, key: Path | None
) -> list[str]:
    """Return the command that starts a device's SuperNode.

    Args:
        link: The SuperLink.
        config: The node's configuration: `partition-id`, and what it sets for itself.
        port: On the device's loopback, between the SuperNode and its client processes.
        key: The device's private key; None without authentication.
    """
    pairs = " ".join(f"{name}={toml(value)}" for name, value in config.items())
    command = [
        "flower-supernode",
        *("--superlink", link.address, "--port", str(port), "--node-config", pairs),
    ]
    if link.credentials is None or key is None:
        return [*command, "--insecure"]
    return [
        *command,
        *("--root-certificates", str(link.credentials / AUTHORITY)),
        *("--auth-supernode-private-key", str(key)),
    ]


def connection(name: str, link: Link) -> str:
    """Return the content of `$FLWR_HOME/config.toml` that leads to a SuperLink."""
    lines = ["[superlink]", f'default = "{name}"', f"[superlink.{name}]"]
    lines.append(f"address = {toml(link.address)}")
    if link.credentials is None:
        lines.append("insecure = true")
    else:
        lines.append(f"root-certificates = {toml(str(link.credentials / AUTHORITY))}")
    return "\n".join(lines) + "\n"


def toml(value: int | float | str) -> str:
    """Return a value in TOML.

    A quotation mark within text becomes a number: Flower ends a node's value at the first of them,
    escaped or not. And TOML, unlike JSON, knows no surrogates.
    """
    if not isinstance(value, str):
        return json.dumps(value)
    inner = json.dumps(value, ensure_ascii=False)[1:-1]
    return '"' + inner.replace('\\"', "\\u0022").replace("\x7f", "\\u007f") + '"'


def program(name: str) -> str:
    """Return one of Flower's programs: the one installed beside this Python, if it is there."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else name


def environment(home: Path | None = None) -> dict[str, str]:
    """Return the environment of one of Flower's processes, which start others by their name."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        **ENVIRONMENT,
        "PATH": path,
        **({} if home is None else {"FLWR_HOME": str(home)}),
    }
