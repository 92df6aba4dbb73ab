"""What server and client print: log lines on standard error, nothing else on standard output.

The JSON form is written here and not by a library: it is these few lines, and it takes only the fields it names,
where uvicorn and websockets attach whole connections to their records.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal

from common.log_context import FIELDS, LogContextFilter

LogFormat = Literal["text", "json"]
TEXT_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s  %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object on one line per record.

    ``time`` (UTC, ISO 8601 with milliseconds), ``level``, ``logger``, ``message``, where known ``run_id``, ``round``,
    ``client_id`` and ``code``, and ``exception``, the traceback, where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; pure ASCII, so that no character of a message can end it."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


def set_up_logging(*, verbose: bool = False, format: LogFormat = "text") -> None:
    """Log to standard error, a line per record, those of uvicorn and websockets included.

    Args:
        verbose: include debugging, and Python's warnings.
        format: ``text`` for people; ``json`` for programs: then also an error that nobody caught is a record.
    """
    logging.basicConfig(
        level=logging.WARNING,
        stream=sys.stderr,
        format=TEXT_FORMAT,
        datefmt="%H:%M:%S",
        force=True,
    )
    logging.getLogger("fedmtl").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")
    if format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
            handler.addFilter(LogContextFilter())
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logging.getLogger("fedmtl").critical("ended by %s: %s", kind.__name__, error, exc_info=(kind, error, traceback))
