"""The figures behind the curves, one row per round, for whoever wants to draw them differently."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np

from fedsim.report.round_columns import GROUPS, Rounds


def curves_csv(rounds: Rounds) -> str:
    """Return the rounds as CSV, in full precision; a cell is empty where nothing was measured.

    Columns: round, asked, admitted, rejected; `rejected.<reason>`; `<group>.<metric>` of each
    group; `per-client.<metric>.mean`, `.p10`, `.p90`; seconds. With a device profile, also the
    simulated seconds and megabytes that a run has taken so far.
    """
    round_R = rounds.round_R.tolist()
    columns: dict[str, Mapping[int, float]] = {
        "asked": _dense(round_R, rounds.asked_R),
        "admitted": _dense(round_R, rounds.admitted_R),
        "rejected": _dense(round_R, rounds.rejected_R),
    }
    for reason, count_R in rounds.rejected.items():
        columns[f"rejected.{reason}"] = _dense(round_R, count_R)
    for group in GROUPS:
        for name, series in rounds.metrics[group].items():
            columns[f"{group}.{name}"] = series.by_round()
    for name, spread in rounds.spread.items():
        at = spread.round_M.tolist()
        columns[f"per-client.{name}.mean"] = _dense(at, spread.mean_M)
        columns[f"per-client.{name}.p10"] = _dense(at, spread.low_M)
        columns[f"per-client.{name}.p90"] = _dense(at, spread.high_M)
    columns["seconds"] = _dense(round_R, rounds.seconds_R)
    simulated_R, megabytes_R = rounds.places("simulated"), rounds.places("bytes")
    if simulated_R is not None:
        columns["simulated-seconds"] = _dense(round_R, simulated_R)
    if megabytes_R is not None:
        columns["megabytes"] = _dense(round_R, megabytes_R)

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["round", *columns])
    for r in round_R:
        writer.writerow([r, *(column.get(r, "") for column in columns.values())])
    return buffer.getvalue()


def _dense(round_M: list[int], value_M: np.ndarray) -> dict[int, float]:
    return dict(zip(round_M, value_M.tolist(), strict=True))
