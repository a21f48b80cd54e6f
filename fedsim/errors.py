"""Every error that fedsim raises on purpose; all derive from `FedsimError`.

A message says what is wrong, where it was set, what was received, what is allowed, and what to type
next. The command line prints it without a traceback (unless `--debug`) and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedsimError(Exception):
    """Base of all errors that a user can cause and can mend."""

    exit_code = 1


class ConfigError(FedsimError):
    """The scenario, or an override of it, asks for something that cannot be run."""

    exit_code = 2


class DataError(ConfigError):
    """A data file is missing, damaged or not of the format that its reader expects."""


class BudgetError(FedsimError):
    """The next round would cross the privacy budget; the model so far is kept."""

    exit_code = 3


class TooFewClientsError(FedsimError):
    """Not enough clients answered for the run to go on."""

    exit_code = 4


class ResumeError(FedsimError):
    """A run folder cannot be resumed: a file is damaged, or the configuration differs."""

    exit_code = 5


class AuditError(FedsimError):
    """An audit refuted the privacy claim of the run that it audited."""

    exit_code = 6


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
