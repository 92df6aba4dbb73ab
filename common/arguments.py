"""Command lines whose ``--tasks`` takes several names at once."""

from __future__ import annotations

from collections.abc import Sequence

import typer


class TasksCommand(typer.core.TyperCommand):
    """Lets ``--tasks`` take several names at once: ``--tasks sst2 qqp``, beside ``--tasks sst2,qqp``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's type
        expanded: list[str] = []
        after_tasks = False
        for argument in args:
            if argument.startswith("-"):
                after_tasks = argument == "--tasks"
                expanded.append(argument)
                continue
            if after_tasks and expanded[-1] != "--tasks":
                expanded.append("--tasks")
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


def task_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """The names in what ``--tasks`` was given, each of which may be several with commas between them."""
    return tuple(name for text in given or () for name in text.split(",") if name)
