"""Places in the code path at which a test makes this process die, wait or meet a full disk.

Off unless the environment variable ``FEDMTL_FAILPOINT`` arms one; then an unarmed point costs one comparison. The
value lists ``NAME=ACTION[@N]``, separated by commas: at the N-th time (default: the first) that the process comes to
the point it does ``kill`` (SIGKILL to itself, as a power cut would), ``sleep:SECONDS``, or ``enospc`` (this time and
from then on the disk is full there, while the file named by ``FEDMTL_FAILPOINT_WHILE`` exists).

``tests/faults`` kills server and client at every name below and compares the finished model with an undisturbed run's.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VARIABLE: Final = "FEDMTL_FAILPOINT"
WHILE_VARIABLE: Final = "FEDMTL_FAILPOINT_WHILE"

#: In the order in which a run comes to them.
SERVER_POINTS: Final = (
    "start.directory_made",
    "start.config_written",
    "start.family_written",
    "commit.written",  # the version's file has its temporary name and may not be on the disk yet
    "commit.synced",
    "commit.renamed",
    "start.database_written",  # the history exists under its temporary name
    "start.database_made",
    "start.listening",
    "start.restoring",
    "start.restored",
    "round.begun",
    "round.dispatched",
    "upload.announced",
    "upload.receiving",
    "spool.written",
    "spool.synced",
    "spool.renamed",
    "update.spooled",
    "update.counted",
    "update.acknowledged",
    "round.closed",
    "reduce.begun",
    "reduce.half",
    "reduce.done",
    "commit.recording",  # in the middle of the transaction
    "commit.recorded",
    "commit.spool_discarded",
    "summary.written",
    "commit.pruned",
    "commit.done",
    "evaluation.begun",
    "finish.recorded",
    "finish.told",
)
CLIENT_POINTS: Final = (
    "client.welcomed",
    "client.prepared",
    "client.work_received",
    "client.evaluated",
    "client.training",
    "client.trained",
    "client.keeping",  # the kept update has its temporary name and is not whole yet
    "client.kept",
    "client.update_announced",
    "client.update_half_sent",
    "client.update_sent",
    "client.acknowledged",
    "client.forgotten",
)
#: Passed only by clients that remember something from round to round (`client.memory`), before `client.trained`.
MEMORY_POINTS: Final = (
    "client.remembering",  # the round's memory has its temporary name and may not be on the disk yet
    "client.remembered",
)


@dataclass
class _Armed:
    """What happens at one point."""

    action: str
    after: int
    seen: int = field(default=0)


_armed: dict[str, _Armed] = {}


def failpoint(name: str) -> None:
    """Fail here if the environment says so.

    Raises:
        OSError: no space left, when ``enospc`` is armed.
    """
    if _armed:
        _reach(name)


def arm(text: str) -> None:
    """Arm what `text` lists, in place of what was armed before.

    Raises:
        ValueError: an unknown point or action.
    """
    _armed.clear()
    for entry in filter(None, text.split(",")):
        name, _, rest = entry.partition("=")
        action, _, times = rest.partition("@")
        if name not in SERVER_POINTS + CLIENT_POINTS + MEMORY_POINTS:
            raise ValueError(f"{VARIABLE}: no point {name!r}")
        if action not in ("kill", "enospc") and not action.startswith("sleep:"):
            raise ValueError(f"{VARIABLE}: {name}: no action {action!r}; there are kill, enospc and sleep:SECONDS")
        _armed[name] = _Armed(action, int(times or 1))


def armed() -> str:
    """What is armed, for the log; empty when nothing is."""
    return ", ".join(f"{name}={point.action}@{point.after}" for name, point in _armed.items())


def _reach(name: str) -> None:
    point = _armed.get(name)
    if point is None:
        return
    point.seen += 1
    if point.action == "enospc":
        if point.seen >= point.after and Path(os.environ[WHILE_VARIABLE]).exists():
            raise OSError(errno.ENOSPC, "No space left on device (failure point)", name)
    elif point.seen == point.after:
        if point.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(point.action.removeprefix("sleep:")))


arm(os.environ.get(VARIABLE, ""))
