"""`fedsim plan`."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing

import typer

from fedsim.commands import options


def plan(
    overrides: options.Overrides = None, as_json: options.Json = False, debug: options.Debug = False
) -> None:
    """Say what a scenario would cost before it is run: bytes, FLOPs, time, memory, privacy."""
    with options.errors(debug):
        from fedsim.config import compose
        from fedsim.plan import plan as make_plan
        from fedsim.simulation import Simulation

        scenario, rest = options.scenario(overrides)
        with closing(Simulation(compose(scenario, rest))) as simulation:
            cost = make_plan(simulation)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(cost)))
            return
        typer.echo(
            f"clients      {cost.num_clients:,}, {cost.clients_per_round:,.1f} a round, "
            f"{cost.rounds:,} rounds\n"
            f"model        {cost.parameters:,} parameters, {cost.model_bytes / 1e6:,.3f} MB\n"
            f"messages     {cost.messages:,}, {cost.megabytes:,.1f} MB over all rounds\n"
            f"computing    {_count(cost.flops)}FLOPs (matrix products and convolutions)\n"
            f"engine       {cost.engine}\n"
            + (f"pace         {cost.pace}\n" if cost.pace else "")
            + f"memory       about {cost.chunk_bytes / 1e6:,.1f} MB for {cost.chunk:,} clients "
            "at once\n"
            f"time         about {cost.total_seconds:,.1f} s on this device "
            f"({1000 * cost.round_seconds:,.1f} ms per training round, measured)\n"
            f"privacy      {cost.privacy}"
        )


def _count(number: float) -> str:
    """Return a number with its prefix, e.g. `12.3 G`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:,.3g} E"
