"""The commands. Heavy imports live inside them, so that `--help` and `list` stay under a second.

Exit codes: 0 done, 2 configuration error, 3 budget reached, 4 too few clients, 5 resume mismatch,
6 a privacy claim was refuted by an audit, 130 interrupted (checkpoint kept), 1 anything else.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fedsim.commands import options
from fedsim.commands.auditing import audit
from fedsim.commands.deploying import deploy
from fedsim.commands.examining import doctor
from fedsim.commands.exporting import export
from fedsim.commands.listing import list_
from fedsim.commands.making import new
from fedsim.commands.planning import plan
from fedsim.commands.reporting import report
from fedsim.commands.running import resume, run
from fedsim.commands.sweeping import sweep

app = typer.Typer(
    help="Federated and privacy-preserving learning: simulate, plan, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Each by itself: a loop over them would lose their types.
app.command(context_settings=options.LOOSE)(run)
app.command()(resume)
app.command(context_settings=options.LOOSE)(sweep)
app.command(context_settings=options.LOOSE)(plan)
app.command(context_settings=options.LOOSE)(audit)
app.command(context_settings=options.LOOSE)(deploy)
app.command("list", context_settings=options.LOOSE)(list_)
app.command()(report)
app.command()(export)
app.command()(new)
app.command()(doctor)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Federated and privacy-preserving learning: simulate, plan, report."""
    if version:
        from fedsim import __version__

        typer.echo(__version__)
        raise typer.Exit


if __name__ == "__main__":
    app()
