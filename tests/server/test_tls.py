"""TLS on the server: unusable files are named before anything starts, strangers get no further than the handshake."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from common.errors import ConfigError
from server.config import TlsConfig
from server.tls import CertifiedWebSocket, bounded_handshakes, names_of, peer_of, server_context
from tests.certificates import Authority, Files


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


@asynccontextmanager
async def listening(context: ssl.SSLContext, handshake_s: float) -> AsyncIterator[str]:
    """A server that answers a connection with the names in its certificate."""
    app = FastAPI()

    @app.websocket("/ws")
    async def tell(socket: WebSocket) -> None:
        await socket.accept()
        peer = peer_of(socket)
        await socket.send_json([peer.address, sorted(names_of(peer.certificate or {}))])
        await socket.close()

    config = uvicorn.Config(
        app,
        port=0,
        ws=CertifiedWebSocket,
        http="httptools",
        lifespan="off",
        log_config=None,
        log_level="critical",
        ssl_context_factory=lambda *_: context,
        timeout_graceful_shutdown=1,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with bounded_handshakes(asyncio.get_running_loop(), handshake_s):
        await server.startup()
    try:
        yield f"localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        await server.shutdown()


def on_both_loops(coroutine: Any) -> None:  # noqa: ANN401  # a function that gives one
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(coroutine())


def test_the_application_sees_the_certificate_of_each_peer(authority: Authority) -> None:
    context = server_context(tls(authority.server(), authority.ca))
    alice, bob = authority.client("alice"), authority.client("bob", "b.example")

    async def both() -> None:
        async with listening(context, 10) as address:
            for files, names in ((alice, '["alice"]'), (bob, '["b.example","bob"]')):
                async with connect(f"wss://{address}/ws", ssl=authority.trusted(files), proxy=None) as socket:
                    assert await socket.recv() == f'["127.0.0.1",{names}]'

    on_both_loops(both)


def test_without_a_certificate_of_the_authority_there_is_no_connection(authority: Authority, tmp_path: Path) -> None:
    context = server_context(tls(authority.server(), authority.ca))
    stranger = Authority(tmp_path / "stranger").client("alice")

    async def refused() -> None:
        async with listening(context, 10) as address:
            for own in (None, stranger):
                # TLS 1.3: the client is done before the server has seen its certificate, and is cut off then.
                with pytest.raises((OSError, WebSocketException)):
                    async with connect(f"wss://{address}/ws", ssl=authority.trusted(own), proxy=None):
                        pass

    on_both_loops(refused)


def test_a_peer_that_does_not_finish_the_handshake_is_let_go(authority: Authority) -> None:
    context = server_context(tls(authority.server()))

    async def silent() -> None:
        async with listening(context, 0.2) as address:
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(20):  # without the bound: a minute
                assert await reader.read() == b""
            writer.close()

    on_both_loops(silent)
