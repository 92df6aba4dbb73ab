"""How many files and sockets the limits of a server amount to, and the right to open as many."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from common.errors import ConfigError

if TYPE_CHECKING:
    from server.config import LimitsConfig

#: For everything that is not counted: database, log, model versions, libraries.
_RESERVE: Final = 256


def files_needed(limits: LimitsConfig, backlog: int) -> int:
    """The most descriptors that a server with these limits opens.

    Args:
        limits: the operator's.
        backlog: connections that may be accepted before the first of them can be told to leave.
    """
    # An upload has a file beside its socket, and so has a download of weights.
    return 2 * limits.connections + limits.handshakes + 2 * limits.requests + backlog + _RESERVE


def raise_file_limit(limits: LimitsConfig, backlog: int) -> None:
    """Allow this process as many open files as its limits need: an accept that fails stalls everybody.

    Raises:
        ConfigError: the system's hard limit is lower.
    """
    if sys.platform == "win32":
        return
    import resource

    needed = files_needed(limits, backlog)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = limits.connections - -(-(needed - hard) // 2)
        advice = f"set server.limits.connections to {most} or less" if most > 0 else "lower server.limits"
        raise ConfigError(
            f"server.limits allows {limits.connections} clients, for which the server has to open {needed} files and "
            f"sockets, and this system lets it open {hard}: {advice}, or raise the hard limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
