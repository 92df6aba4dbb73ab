"""How a command ends on a deliberate error: with its sentence on standard error and its exit code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import typer

from common.errors import FedmtlError

log = logging.getLogger("fedmtl.server")


@contextlib.contextmanager
def errors_as_exit_code(log: logging.Logger = log) -> Iterator[None]:
    """Log what was raised on purpose and end the command with its exit code; anything else is a bug and shows.

    Args:
        log: takes the sentence.
    """
    try:
        yield
    except FedmtlError as error:
        log.error("%s", error)  # noqa: TRY400  # the operator needs the sentence, not our stack
        raise typer.Exit(error.exit_code) from error
