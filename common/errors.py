"""Every error fedmtl raises on purpose, and the exit code a command ends with because of it.

::

    FedmtlError
    ├── ConfigError        the operator's file or arguments          exit 2
    ├── DataError          rows, columns or files of a data set      exit 2
    ├── PlanError          a sharing plan that breaks its own rules
    ├── ProtocolError      a peer sent something it may not send
    │   └── UpdateRejected an update that would harm the round
    ├── Refused            the server does not want this client      exit 4
    └── RunFailed          the run can't be finished                 exit 3
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_RUN_FAILED: Final = 3
EXIT_REFUSED: Final = 4


class FedmtlError(Exception):
    """Base of all deliberate errors; `exit_code` is what a command returns for it."""

    exit_code: ClassVar[int] = 1


class ConfigError(FedmtlError):
    """A configuration or command line that can't be used: names file, key, value and what is allowed."""

    exit_code = EXIT_USAGE


class DataError(FedmtlError):
    """Data that does not fit its task: names the source, the rows and what was expected."""

    exit_code = EXIT_USAGE


class PlanError(FedmtlError):
    """A sharing plan, or an operation on one, that breaks the plan's invariants."""


class ProtocolError(FedmtlError):
    """A peer broke the protocol. `code` is the name that travels to it.

    Args:
        code: one of the names in docs/protocol.md, section "Errors".
        reason: a sentence for people.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class UpdateRejected(ProtocolError):
    """An update that would harm the round; the round goes on without it."""


class Refused(FedmtlError):
    """The server refused this client (authentication, protocol version, plan mismatch, tasks)."""

    exit_code = EXIT_REFUSED

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"the server refused this client ({code}): {reason}")
        self.code = code
        self.reason = reason


class RunFailed(FedmtlError):
    """The run can't be finished: quorum lost, or the other end is gone for good."""

    exit_code = EXIT_RUN_FAILED
