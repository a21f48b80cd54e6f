"""A run as one string, and its client side rebuilt from it in another process.

The string is what `fedsim deploy` puts into Flower's run configuration, and what Ray's actors get:
the whole resolved configuration, and whether the run is cut down to a smoke run. Parts are made
from the seed alone, so two processes that read the same string hold the same data, partition and
initial model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedsim.config import Config
from fedsim.config.overrides import Change
from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.client.runtime import ClientRuntime


def is_own(key: str) -> bool:
    """Whether a device may set a key for itself (`--node-config 'data.root="/path"'`).

    Where its data is and what it computes on: never what it does.
    """
    return key == "device" or key.startswith("data.")


def write(config: Config, *, smoke: bool) -> str:
    """Return a run as one string."""
    return json.dumps({"config": config.to_yaml(), "smoke": smoke})


def read(text: str, own: Mapping[str, Any] | None = None) -> tuple[Config, bool]:
    """Return (configuration, whether it is a smoke run).

    Args:
        text: What `write` returned.
        own: Keys of the scenario that hold for this process alone; see `is_own`.

    Raises:
        ConfigError: The text is not a run, or a key is not a device's own, or its value is refused.
    """
    try:
        told = json.loads(text)
        config, smoke = str(told["config"]), bool(told["smoke"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the run's configuration cannot be read ({type(error).__name__}: {error}); "
            "was it submitted by another version of fedsim?"
        ) from error
    changes = []
    for key, value in (own or {}).items():
        if not is_own(key):
            raise ConfigError(f"{key}: a node may set only its own device and keys of data")
        path = tuple(key.split("."))
        changes.append(Change(text=f"{key}={value}", path=path, value=value, delete=False))
    return Config.from_yaml(config, "the run's configuration", changes), smoke


@lru_cache(maxsize=2)
def runtime(text: str, own: tuple[tuple[str, Any], ...] = ()) -> ClientRuntime:
    """Return the client side of a run; made once per process.

    Raises:
        ConfigError: As `read`; or a part cannot be made here.
    """
    from fedsim.simulation import Simulation  # they import the engines' contract
    from fedsim.smoke import Smoke

    config, smoke = read(text, dict(own))
    return Simulation(config, Smoke() if smoke else None).runtime
