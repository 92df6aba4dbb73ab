"""The client's command line: where the token comes from, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.__main__ import MAX_TOKEN, _require_address, _token
from common.errors import ConfigError
from common.messages import Hello

HERE = "ws://127.0.0.1:8771/ws"


def test_a_token_comes_from_the_command_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  secret\n")
    assert _token(None, None, HERE) is None
    assert _token("given", None, HERE) == "given"
    assert _token(None, file, HERE) == "secret"
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        _token(None, file, HERE)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't be read"):
        _token(None, file, HERE)
    with pytest.raises(ConfigError, match="not both"):
        _token("given", file, HERE)


def test_a_token_that_no_message_takes_is_refused_here() -> None:
    longest = "x" * MAX_TOKEN
    assert Hello(protocol=(1,), client_id="a", token=_token(longest, None, HERE)).token == longest
    with pytest.raises(ConfigError, match="at most 4096"):
        _token(longest + "x", None, HERE)


@pytest.mark.parametrize(
    ("server", "warned"), [(HERE, False), ("wss://example.org/ws", False), ("ws://example.org/ws", True)]
)
def test_a_token_in_clear_is_warned_of_and_not_shown(
    server: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _token("secret", None, server)
    assert ("in clear" in caplog.text) is warned
    assert "secret" not in caplog.text
    caplog.clear()
    _token(None, None, server)
    assert caplog.text == ""


@pytest.mark.parametrize("server", ["ws://h/ws", "wss://h:8771/ws", "ws://[::1]:8771/ws"])
def test_addresses(server: str) -> None:
    _require_address(server)


@pytest.mark.parametrize(
    "server", ["http://h", "ws://", "ws:///ws", "ws://h:x/ws", "ws://h:70000/", "ws://[::1/ws", "h"]
)
def test_what_is_no_address(server: str) -> None:
    with pytest.raises(ConfigError, match="expected ws://HOST"):
        _require_address(server)
