"""Devices that misbehave, for the tests of what a deployment stands."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from fedsim.client import app
from fedsim.client.sequential import LocalResult, train_client
from fedsim.data.bundled import Bundled
from fedsim.data.dataset import DataPart, Dataset
from fedsim.records import NUM_EXAMPLES

SLEEP_S = 60.0


@dataclass(frozen=True, kw_only=True)
class FaultyDigits(DataPart):
    """The digits; what a device does with them is its node's configuration's `data.behave`.

    Attributes:
        behave: Nothing: well. `raise`: fails. `lie`: claims 10^12 samples. `sleep`: takes a minute.
    """

    behave: str = ""

    def load(self) -> Dataset:
        if self.behave == "raise":
            raise RuntimeError("the disk is on fire")
        if self.behave == "sleep":
            time.sleep(SLEEP_S)
        if self.behave == "lie":
            app.train_client = _lying  # type: ignore[attr-defined]
        return Bundled(name="digits").load()


def _lying(*words: Any, **named: Any) -> LocalResult:
    result = train_client(*words, **named)
    return dataclasses.replace(result, metrics={**result.metrics, NUM_EXAMPLES: 1e12})
