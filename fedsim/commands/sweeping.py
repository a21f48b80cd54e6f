"""`fedsim sweep`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands import options
from fedsim.completion import complete_overrides


def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="scenario=<names>, then overrides in Hydra's grammar, of which some have several "
            "values: privacy.epsilon=0.5,1,2 'seed=range(0,5)' 'strategy=glob(fed*)'. The word "
            "'and' stands between grids.",
            metavar="scenario=NAME[,NAME]... [KEY=VALUE[,VALUE]...]... [and ...]",
            autocompletion=complete_overrides,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Runs at once; by default, one per core."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster (extra: ray)."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="SWEEP", help="Go on with a sweep, from its folder."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the sweep's folder; by default, the scenario's."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run points again that an earlier sweep has run.")
    ] = False,
    search: Annotated[
        int | None,
        typer.Option(
            "--search",
            min=1,
            metavar="N",
            help="Draw N points from intervals and lists, 'client.lr=tag(log,interval(0.01,1))', "
            "for the best utility and, where the scenario is private, epsilon (extra: search).",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Of --search: NAME, NAME:min or NAME:max.", metavar="NAME"),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            "--warmup",
            help="Of --search: rounds before which no run is stopped for being beaten at the same "
            "round; by default a quarter of them; 0 never stops one.",
        ),
    ] = None,
    sampler_seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of --search: of the sampler; 0 by default.")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a scenario over a grid of values, several runs at once, and compare them.

    Typed again, the command goes on where it stopped; points that have been run are left alone.
    """
    with options.errors(debug):
        # One core for each point; libraries read this once, when they are loaded.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from fedsim.sweep import front

        options.check_words(words or [])

        chosen = front.Choice(
            jobs=jobs,
            ray=ray,
            name=name,
            fresh=fresh,
            as_json=as_json,
            search=search,
            metric=metric,
            warmup=warmup,
            sampler_seed=sampler_seed,
        )
        if code := front.sweep(words or [], resume, chosen):
            raise typer.Exit(code)
