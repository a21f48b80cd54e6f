"""The exact commands that start Flower's processes."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from flwr.supercore.address import parse_address

from fedsim.deploy import commands
from fedsim.deploy.commands import Link

KEYS = Path("/keys")
OPEN = Link(host="127.0.0.1", port=9443, bind="127.0.0.1", credentials=None)
SECURE = Link(host="fl.example.org", port=9443, bind="0.0.0.0", credentials=KEYS)  # noqa: S104


def test_a_superlink_in_plain_text() -> None:
    assert commands.superlink(OPEN, Path("state.db")) == [
        *("flower-superlink", "--host", "127.0.0.1", "--port", "9443", "--database", "state.db"),
        *("--disable-runtime-dependency-installation", "--insecure"),
    ]


def test_a_secure_superlink() -> None:
    assert commands.superlink(SECURE, Path("state.db")) == [
        *("flower-superlink", "--host", "0.0.0.0", "--port", "9443", "--database", "state.db"),  # noqa: S104
        "--disable-runtime-dependency-installation",
        *("--ssl-ca-certfile", "/keys/ca.crt", "--ssl-certfile", "/keys/server.crt"),
        *("--ssl-keyfile", "/keys/server.key", "--enable-supernode-auth"),
    ]


def test_supernodes() -> None:
    assert commands.supernode(OPEN, {"partition-id": 2}, port=9094, key=None) == [
        *("flower-supernode", "--superlink", "127.0.0.1:9443", "--port", "9094"),
        *("--node-config", "partition-id=2", "--insecure"),
    ]
    assert commands.supernode(SECURE, {"partition-id": 2}, port=9094, key=Path("/me/key")) == [
        *("flower-supernode", "--superlink", "fl.example.org:9443", "--port", "9094"),
        *("--node-config", "partition-id=2", "--root-certificates", "/keys/ca.crt"),
        *("--auth-supernode-private-key", "/me/key"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/srv/data",
            "/a folder/with  spaces",
            'say "hello"',
            '"',
            '""',
            "it's",
            "'",
            "back\\slash",
        ),
        *("\\", "ends in \\", '\\"', '"\\', "both \" and '", "üñï", "🙂", "a=b c=d", "x.toml", ""),
        *("tab\there", "line\nline", "\x7f", "\x00", "\\u0022", "#no", "[1]", "{}", "true"),
    ],
)
def test_what_a_node_sets_for_itself_arrives_as_it_was(text: str) -> None:
    config: dict[str, int | str] = {"partition-id": 3, "data.root": text, "data.file": "b"}
    command = commands.supernode(OPEN, config, port=1, key=None)
    written = command[command.index("--node-config") + 1]
    assert parse_config_args([written]) == config
    assert tomllib.loads(f"x = {commands.toml(text)}") == {"x": text}


def test_numbers_stay_numbers() -> None:
    command = commands.supernode(OPEN, {"partition-id": 0, "data.x": -3}, port=1, key=None)
    assert parse_config_args([command[command.index("--node-config") + 1]]) == {
        "partition-id": 0,
        "data.x": -3,
    }


def test_an_ipv6_address_is_put_in_brackets() -> None:
    link = Link(host="fd00::7", port=9443, bind="::", credentials=None)
    assert link.address == "[fd00::7]:9443"
    assert parse_address(link.address) == ("fd00::7", 9443, True)
    assert "[fd00::7]:9443" in commands.supernode(link, {"partition-id": 0}, port=1, key=None)


@pytest.mark.parametrize(
    ("hosts", "bind"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["localhost", "127.0.0.1"], "127.0.0.1"),
        (["::1"], "::1"),
        (["fl.example.org"], "0.0.0.0"),  # noqa: S104
        (["127.0.0.1", "10.0.0.5"], "0.0.0.0"),  # noqa: S104
        (["fd00::7"], "::"),
    ],
)
def test_a_superlink_listens_where_it_is_reached(hosts: list[str], bind: str) -> None:
    assert commands.bind(hosts) == bind


def test_what_is_loopback() -> None:
    inside = ("127.0.0.1", "127.9.9.9", "::1", "localhost")
    outside = ("10.0.0.1", "0.0.0.0", "::", "fl.example.org", "localhost.example.org", "")  # noqa: S104
    assert all(map(commands.is_loopback, inside))
    assert not any(map(commands.is_loopback, outside))


@pytest.mark.parametrize("folder", ["/home/me", '/a "b"/ü', "C:\\data"])
def test_the_connection_is_toml(folder: str) -> None:
    link = Link(host="fl.example.org", port=1, bind="", credentials=Path(folder))
    assert tomllib.loads(commands.connection("federation", link)) == {
        "superlink": {
            "default": "federation",
            "federation": {
                "address": "fl.example.org:1",
                "root-certificates": str(Path(folder) / "ca.crt"),
            },
        }
    }
    assert tomllib.loads(commands.connection("x", OPEN))["superlink"]["x"] == {
        "address": "127.0.0.1:9443",
        "insecure": True,
    }


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.setenv("FLWR_HOME", "/the/users")
    monkeypatch.setenv("KEPT", "yes")
    beside = str(Path(sys.executable).parent)
    told = commands.environment()
    assert told["PATH"] == f"{beside}{os.pathsep}/somewhere"
    assert told["FLWR_HOME"] == "/the/users"
    assert told["KEPT"] == "yes"
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert commands.environment(Path("/mine"))["FLWR_HOME"] == "/mine"


def test_programs_are_those_beside_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flwr").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert commands.program("flwr") == str(tmp_path / "flwr")
    assert commands.program("flower-superlink") == "flower-superlink"
