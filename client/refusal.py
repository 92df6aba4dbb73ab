"""What it means that the server does not take us: a mistake in the command, try again, or go for good."""

from __future__ import annotations

from typing import Final

import websockets

from common.errors import ConfigError, FedmtlError, ProtocolError, Refused

#: Refusals that may not come again; after any other one coming back is of no use.
PASSING_REFUSALS: Final = frozenset({"duplicate_client", "busy", "shutting_down", "timeout", "checksum", "internal"})


def refusal(code: str, reason: str, *, returning: bool) -> FedmtlError:
    """The error that a refusal stands for.

    Args:
        code: from the server.
        reason: from the server.
        returning: the client in our place may be a connection of our own that is dead.

    Returns:
        ConfigError: a mistake in the command. ProtocolError: try again later. Refused: for good.
    """
    if code == "unknown_task":
        return ConfigError(reason)
    if code == "taken_over":
        # To come back would throw the other one out, which would come back in turn.
        return Refused(code, f"another client with this id took over: {reason}")
    if code in PASSING_REFUSALS and (returning or code != "duplicate_client"):
        return ProtocolError(code, reason)
    return Refused(code, reason)


def why_no_connection(url: str, error: Exception) -> str:
    """One line for the log."""
    if isinstance(error, websockets.InvalidStatus):
        response = error.response
        said = " ".join((response.body or b"").decode(errors="replace").split())[:200]
        return f"HTTP {response.status_code} {response.reason_phrase}".rstrip() + (f": {said}" if said else "")
    said = str(error) or type(error).__name__
    if isinstance(error, websockets.InvalidMessage | ConnectionResetError) and url.startswith("wss://"):
        # asyncio does not pass on the alert by which a server refuses our certificate, or that we gave none. A server
        # that dies at this moment looks the same.
        return f"{said}; if the server asks for a client certificate, see --cert and --key"
    return said
