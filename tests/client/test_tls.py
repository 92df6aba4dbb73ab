"""TLS to a real server on loopback: who is trusted, who is not, and what is said."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve

from client.display import Display
from client.session import Identity, Session
from client.tls import NotTrusted, client_tls, travels_in_clear, trust_failure
from common.errors import ConfigError, RunFailed
from common.event_loop import loop_factory
from common.messages import Finished
from common.wire import encode_frame
from tests.client.test_session import Counting

WSS = "wss://127.0.0.1:1/ws"
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Files:
    """Certificates of one test module, as PEM files."""

    authority: trustme.CA
    ca: Path
    other_ca: Path
    cert: Path
    key: Path
    other_cert: Path
    other_key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    made = Files(authority, *(folder / f"{n}.pem" for n in ("ca", "other", "cert", "key", "other-cert", "other-key")))
    authority.cert_pem.write_to_path(str(made.ca))
    other.cert_pem.write_to_path(str(made.other_ca))
    for signer, cert, key in ((authority, made.cert, made.key), (other, made.other_cert, made.other_key)):
        leaf = signer.issue_cert("c1@example.org")
        leaf.private_key_pem.write_to_path(str(key))
        for pem in leaf.cert_chain_pems:
            pem.write_to_path(str(cert), append=True)
    return made


def server_context(authority: trustme.CA, *names: str, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[str]:
    """Says at once that the run is over."""

    async def finish(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(encode_frame(Finished(state="finished", reason="done", rounds_completed=2)))

    async with serve(finish, "127.0.0.1", 0, ssl=context, compression=None) as server:
        yield f"wss://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"


def on_our_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run on the loop that the programs use: what a failed handshake raises depends on it."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())


async def visit(url: str, context: ssl.SSLContext | None, reconnect_s: float = PATIENCE_S) -> Finished:
    identity = Identity(url, "c1", reconnect_s=reconnect_s, tls=context)
    return await Session(identity, Counting(), Display(terminal=False)).run()


def test_a_server_whose_authority_is_given_is_trusted(files: Files) -> None:
    async def test() -> None:
        async with tls_server(server_context(files.authority, "127.0.0.1")) as url:
            assert (await visit(url, client_tls(url, files.ca, None, None))).reason == "done"

    on_our_loop(test)


@pytest.mark.parametrize("problem", ["unknown authority", "system's authorities", "other name"])
def test_a_server_that_is_not_trusted_ends_the_client_with_what_to_do(files: Files, problem: str) -> None:
    async def test() -> None:
        name = "example.org" if problem == "other name" else "127.0.0.1"
        ca = {"unknown authority": files.other_ca, "other name": files.ca}.get(problem)
        async with tls_server(server_context(files.authority, name)) as url:
            with pytest.raises(NotTrusted, match=r"can't be verified: .*--ca FILE") as raised:
                await visit(url, client_tls(url, ca, None, None))
            assert raised.value.exit_code == 4

    on_our_loop(test)


def test_a_server_may_ask_who_the_client_is(files: Files) -> None:
    async def test() -> None:
        async with tls_server(server_context(files.authority, "127.0.0.1", clients=files.authority)) as url:
            assert (await visit(url, client_tls(url, files.ca, files.cert, files.key))).reason == "done"

    on_our_loop(test)


@pytest.mark.parametrize("given", ["none", "of another authority"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_whose_certificate_is_refused_is_told_what_to_give(
    files: Files, given: str, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        context = server_context(files.authority, "127.0.0.1", clients=files.authority)
        context.maximum_version = version
        async with tls_server(context) as url:
            own = (files.other_cert, files.other_key) if given != "none" else (None, None)
            with pytest.raises(RunFailed):  # it can't be told from a server that dies, so it is tried again
                await visit(url, client_tls(url, files.ca, *own), reconnect_s=0.2)
            assert "if the server asks for a client certificate, see --cert and --key" in caplog.text

    on_our_loop(test)


def test_files_that_cannot_be_used_are_named(files: Files, tmp_path: Path) -> None:
    nothing, garbage = tmp_path / "missing.pem", tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")
    for arguments, said in [
        ((nothing, None, None), "--ca .*missing.pem: No such file"),
        ((garbage, None, None), "--ca .*garbage.pem: .*expected is a PEM file"),
        ((files.key, None, None), "--ca .*key.pem: .*expected is a PEM file"),
        ((None, nothing, files.key), "--cert .*missing.pem: No such file"),
        ((None, files.cert, nothing), "--key .*missing.pem: No such file"),
        ((None, garbage, files.key), "--cert .*garbage.pem .*expected are PEM files"),
        ((None, files.cert, files.other_key), "--cert .*other-key.pem: key values mismatch"),
        ((None, files.cert, None), "--cert and --key go together"),
        ((None, None, files.key), "--cert and --key go together"),
    ]:
        with pytest.raises(ConfigError, match=said) as raised:
            client_tls(WSS, *arguments)
        assert raised.value.exit_code == 2


def test_without_tls_there_is_nothing_to_verify(files: Files) -> None:
    assert client_tls("ws://127.0.0.1:1/ws", None, None, None) is None
    for arguments in [(files.ca, None, None), (None, files.cert, files.key), (None, None, files.key)]:
        with pytest.raises(ConfigError, match=r"there is no TLS over ws://.*wss://"):
            client_tls("ws://127.0.0.1:1/ws", *arguments)


def test_the_default_trusts_what_the_system_trusts() -> None:
    context = client_tls(WSS, None, None, None)
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("ws://127.0.0.1:8771/ws", False),
        ("ws://127.3.2.1:8771/ws", False),
        ("ws://[::1]:8771/ws", False),
        ("ws://localhost:8771/ws", False),
        ("wss://example.org/ws", False),
        ("ws://example.org/ws", True),
        ("ws://10.0.0.1:8771/ws", True),
        ("ws://[fe80::1]:8771/ws", True),
        ("ws://localhost.example.org/ws", True),
    ],
)
def test_a_token_is_readable_on_the_way_unless_it_stays_here_or_is_encrypted(url: str, clear: bool) -> None:
    assert travels_in_clear(url) is clear


def test_other_failures_are_not_about_trust() -> None:
    error = OSError("no route")
    error.__context__ = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.__context__.__context__ = error  # a circle
    assert trust_failure(WSS, error) is None
