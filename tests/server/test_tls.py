"""TLS on the server: unusable files are named before anything starts, strangers get no further than the handshake."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from fastapi import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from common.errors import ConfigError
from server.config import LimitsConfig, TlsConfig
from server.gate import Visit
from server.tls import names_of, peer_of, server_context
from tests.certificates import Authority, Files
from tests.server.listening import Listening, Receive, Send, listening


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def tls(files: Files, client_ca: Path | None = None, **changes: Path) -> TlsConfig:
    return TlsConfig.model_validate({"cert": files.cert, "key": files.key, "client_ca": client_ca} | changes)


def test_the_context_speaks_tls_1_2_at_least_and_asks_for_certificates_only_when_told(authority: Authority) -> None:
    files = authority.server()
    plain, mutual = server_context(tls(files)), server_context(tls(files, authority.ca))
    assert plain.minimum_version == mutual.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (plain.verify_mode, mutual.verify_mode) == (ssl.CERT_NONE, ssl.CERT_REQUIRED)


def test_every_unusable_file_is_named(authority: Authority, tmp_path: Path) -> None:
    files, other = authority.server(), authority.server("other")
    garbage, nowhere = tmp_path / "garbage.pem", tmp_path / "nowhere.pem"
    garbage.write_bytes(b"\x00no certificate")
    encrypted = tmp_path / "encrypted.key"
    key = load_pem_private_key(files.key.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    cases: list[tuple[dict[str, Path], list[str]]] = [
        ({"cert": nowhere}, ["server.tls.cert", "nowhere.pem", "No such file"]),
        ({"key": tmp_path}, ["server.tls.key", "Is a directory"]),
        ({"client_ca": nowhere}, ["server.tls.client_ca", "nowhere.pem"]),
        ({"cert": garbage}, ["garbage.pem", "PEM"]),
        ({"key": garbage}, ["garbage.pem", "PEM"]),
        ({"client_ca": garbage}, ["server.tls.client_ca", "garbage.pem"]),
        ({"key": other.key}, ["other.key is not the private key", "server.pem"]),
        ({"key": encrypted}, ["encrypted.key is encrypted"]),
    ]
    for changes, told in cases:
        with pytest.raises(ConfigError) as raised:
            server_context(tls(files, **changes))
        for words in told:
            assert words in str(raised.value), (changes, str(raised.value))


def test_whom_a_certificate_names() -> None:
    certificate: dict[str, Any] = {
        "subject": ((("countryName", "XX"),), (("commonName", "alice"),)),
        "subjectAltName": (("DNS", "a.example"), ("IP Address", "192.0.2.1"), ("URI", "x:y")),
    }
    assert names_of(certificate) == {"alice", "a.example"}
    assert names_of({}) == frozenset()


async def tell(server: Listening, visit: Visit, receive: Receive, send: Send) -> None:
    """Answer a connection with its address and the names in its certificate."""
    del visit
    peer = peer_of(WebSocket({"type": "websocket", "state": server.state}, receive, send))
    await send({"type": "websocket.send", "text": json.dumps([peer.address, sorted(names_of(peer.certificate or {}))])})
    await send({"type": "websocket.close"})


def on_both_loops(coroutine: Any) -> None:  # noqa: ANN401  # a function that gives one
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(coroutine())


def test_the_application_sees_the_certificate_of_each_peer(authority: Authority) -> None:
    context = server_context(tls(authority.server(), authority.ca))
    alice, bob = authority.client("alice"), authority.client("bob", "b.example")

    async def both() -> None:
        async with listening(talk=tell, tls=context) as server:
            for files, names in ((alice, '["alice"]'), (bob, '["b.example", "bob"]')):
                async with connect(
                    f"wss://localhost:{server.port}/ws", ssl=authority.trusted(files), proxy=None
                ) as socket:
                    assert await socket.recv() == f'["127.0.0.1", {names}]'

    on_both_loops(both)


def test_without_a_certificate_of_the_authority_there_is_no_connection(authority: Authority, tmp_path: Path) -> None:
    context = server_context(tls(authority.server(), authority.ca))
    stranger = Authority(tmp_path / "stranger").client("alice")

    async def refused() -> None:
        async with listening(talk=tell, tls=context) as server:
            for own in (None, stranger):
                # TLS 1.3: the client is done before the server has seen its certificate, and is cut off then.
                with pytest.raises((OSError, WebSocketException)):
                    async with connect(f"wss://localhost:{server.port}/ws", ssl=authority.trusted(own), proxy=None):
                        pass

    on_both_loops(refused)


def test_a_peer_that_does_not_finish_the_handshake_is_let_go(authority: Authority) -> None:
    context = server_context(tls(authority.server()))

    async def silent() -> None:
        async with listening(LimitsConfig(handshake_s=0.2), tls=context) as server:
            reader, _ = await server.connect()
            async with asyncio.timeout(20):  # without the bound: a minute
                assert await reader.read() == b""

    on_both_loops(silent)
