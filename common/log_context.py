"""What a log record is about: run, round and client, known without each call saying so.

Three sources, the first that knows a field wins: ``extra={"code": ...}`` of the call itself, what
`bind_log_context` bound in the current task (and so in the tasks that it starts), what `set_log_context` set for the
whole process. A thread sees the process's facts only, unless its work is handed over through `with_log_context`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

#: The fields that a record may carry, in the order in which they are written.
FIELDS: Final = ("run_id", "round", "client_id", "code")

Fact = str | int | None
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_NOTHING: Final[Mapping[str, Fact]] = {}
_process: dict[str, Fact] = {}
_task: ContextVar[Mapping[str, Fact]] = ContextVar("fedmtl_log_context", default=_NOTHING)


def set_log_context(**facts: Fact) -> None:
    """Set facts for every record of this process from now on; None forgets one.

    Raises:
        ValueError: a name that is not in `FIELDS`.
    """
    _require_fields(facts)
    _process.update(facts)


def bind_log_context(**facts: Fact) -> None:
    """Set facts for the records of the current task, and of the tasks that it starts from now on.

    Raises:
        ValueError: a name that is not in `FIELDS`.
    """
    _require_fields(facts)
    _task.set({**_task.get(), **facts})


def with_log_context(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`work`, to be called once in another thread, where it logs with the context of now."""
    return partial(copy_context().run, work)


class LogContextFilter(logging.Filter):
    """Gives a record the fields of its context; lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields that are known and that the record does not carry itself."""
        for name, value in {**_process, **_task.get()}.items():
            if value is not None and not hasattr(record, name):
                setattr(record, name, value)
        return True


def _require_fields(facts: Mapping[str, Fact]) -> None:
    if unknown := sorted(facts.keys() - set(FIELDS)):
        raise ValueError(f"{', '.join(unknown)}: a log record has the fields {', '.join(FIELDS)}")
