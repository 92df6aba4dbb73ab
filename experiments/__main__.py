"""``python -m experiments``: compare model families and methods on tabular problems, centrally and federated."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from common.console import LogFormat, set_up_logging
from server.command_end import errors_as_exit_code

log = logging.getLogger("fedmtl.experiments")
#: Command to what it does. Each is the function `command` of the module ``experiments.NAME_command``.
COMMANDS: Final[Mapping[str, str]] = {
    "train": "Train a model family on a data set, centrally or in a federation of real processes.",
    "baselines": "Gradient boosting and a plain network for each task.",
    "correlation": "Loss of every family against the correlation of two synthetic tasks.",
    "dynamics": "Training under different weights of the tasks.",
    "data": "Fetch the files of a data set, or say where to put them.",
    "inputs": "Print the input columns of a table, or of a problem, as a model section declares them.",
    "report": "Everything that was measured as one HTML file.",
}


class Commands(typer.core.TyperGroup):
    """Imports a command's module when that command is called, and no other: some need torch, which takes a second."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # click's type  # noqa: ARG002
        """In the order in which a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # noqa: ANN401, ARG002
        """What the list of commands shows of one."""
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:  # noqa: ANN401
        """The command that is called, loaded."""
        name, shown, rest = super().resolve_command(ctx, args)
        return name, None if shown is None or name is None else _loaded(name), rest

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # click's
        """Run it; an error that was raised on purpose becomes a sentence and an exit code."""
        with errors_as_exit_code(log):
            return super().invoke(ctx)


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def experiments(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Lines for people, or a JSON object per line.")] = "text",
) -> None:
    """Compare model families and methods on tabular problems, centrally and federated."""
    set_up_logging(verbose=verbose, format=log_format)


def _loaded(name: str) -> Any:  # noqa: ANN401  # click's command, which typer brings along under a private name
    module = importlib.import_module(f"experiments.{name}_command")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, help=COMMANDS[name], cls=getattr(module, "Command", None))(module.command)
    return typer.main.get_command(alone)


def _ended(number: int, _frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    # Before torch is imported: idle worker threads should sleep, not spin, beside client processes.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if "OMP_WAIT_POLICY" not in os.environ:
        # They spin for some microseconds first, see client/__main__.py.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # As if by Ctrl-C: the processes of a federation end with this one, and its folder is removed.
    signal.signal(signal.SIGTERM, _ended)
    app(prog_name="python -m experiments")
