"""Command lines with options, such as ``--tasks``, that take several names at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import typer


class _SeveralAtOnce(typer.core.TyperCommand):
    """What `several_at_once` makes."""

    options: ClassVar[frozenset[str]] = frozenset()

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's type
        expanded: list[str] = []
        after: str | None = None
        for argument in args:
            if argument.startswith("-"):
                after = argument if argument in self.options else None
                expanded.append(argument)
                continue
            if after is not None and expanded[-1] != after:
                expanded.append(after)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


def several_at_once(*names: str) -> type[typer.core.TyperCommand]:
    """A kind of command with options that take several names at once: ``--tasks sst2 qqp``.

    Args:
        names: of the options, which take a list.
    """

    class SeveralAtOnce(_SeveralAtOnce):
        options = frozenset(names)

    return SeveralAtOnce


#: Lets ``--tasks`` take several names at once: ``--tasks sst2 qqp``, beside ``--tasks sst2,qqp``.
TasksCommand: Final = several_at_once("--tasks")


def task_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """The names in what ``--tasks`` was given, each of which may be several with commas between them."""
    return tuple(name for text in given or () for name in text.split(",") if name)
