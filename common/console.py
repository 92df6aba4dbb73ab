"""What server and client print: plain log lines on standard error, nothing else on standard output."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Literal

LogFormat = Literal["text", "json"]


def set_up_logging(*, verbose: bool = False, format: LogFormat = "text") -> None:
    """Log to standard error, a line per record; `verbose` includes debugging."""
    del format
    logging.basicConfig(
        level=logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s  %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    logging.getLogger("fedmtl").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")
