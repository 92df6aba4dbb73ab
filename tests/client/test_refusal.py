"""What a refusal means for a client."""

from __future__ import annotations

import pytest
import websockets
from websockets.datastructures import Headers
from websockets.http11 import Response

from client.refusal import refusal, why_no_connection
from common.errors import ConfigError, FedmtlError, ProtocolError, Refused


@pytest.mark.parametrize(
    ("code", "returning", "kind"),
    [
        ("busy", False, ProtocolError),
        ("shutting_down", False, ProtocolError),
        ("timeout", False, ProtocolError),
        ("checksum", False, ProtocolError),
        ("internal", False, ProtocolError),
        ("duplicate_client", True, ProtocolError),
        ("duplicate_client", False, Refused),
        ("taken_over", True, Refused),
        ("authentication", True, Refused),
        ("authentication", False, Refused),
        ("a_code_of_a_later_version", True, Refused),
        ("unknown_task", True, ConfigError),
    ],
)
def test_only_what_may_pass_is_tried_again(code: str, returning: bool, kind: type[FedmtlError]) -> None:
    error = refusal(code, "because", returning=returning)
    assert type(error) is kind
    assert "because" in str(error)


def test_the_reason_is_one_line() -> None:
    refused = websockets.InvalidStatus(Response(503, "Service Unavailable", Headers(), b"try\r\n later " + b"x" * 999))
    line = why_no_connection("ws://h/ws", refused)
    assert line.startswith("HTTP 503 Service Unavailable: try later xxx")
    assert len(line) < 250
    assert why_no_connection("ws://h/ws", websockets.InvalidStatus(Response(429, "", Headers(), b""))) == "HTTP 429"
    assert why_no_connection("ws://h/ws", TimeoutError()) == "TimeoutError"
    assert why_no_connection("ws://h/ws", OSError("no route")) == "no route"
    assert "--cert" in why_no_connection("wss://h/ws", ConnectionResetError())
    assert "--cert" not in why_no_connection("ws://h/ws", ConnectionResetError())
