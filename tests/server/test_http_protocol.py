"""What a stranger can do to the port before it is a client: real sockets, no federation."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import resource
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from server.config import LimitsConfig
from server.gate import Gate
from tests.server.listening import end_of, listening, until

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: " + base64.b64encode(os.urandom(16)) + b"\r\n"
)


@pytest.mark.parametrize("start", [b"", b"G", b"\r\n", b"GET / HTTP/1.1\r\nhost: ", UPGRADE], ids=repr)
async def test_a_request_that_does_not_end_in_time_is_closed(start: bytes) -> None:
    async with listening(LimitsConfig(handshake_s=0.2)) as server:
        reader, writer = await server.connect()
        writer.write(start)
        assert await end_of(reader) == b""
        assert server.gate.turned_away == {"late": 1}


async def test_a_byte_now_and_then_gains_no_time() -> None:
    async with listening(LimitsConfig(handshake_s=0.5)) as server:
        reader, writer = await server.connect()
        began = asyncio.get_running_loop().time()

        async def drip() -> None:
            for byte in UPGRADE:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await end_of(reader) == b""
        assert asyncio.get_running_loop().time() - began < 3
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_after_an_answer_half_a_request_has_its_time_again_and_no_more() -> None:
    async with listening(LimitsConfig(handshake_s=0.3)) as server:
        reader, writer = await server.connect()
        writer.write(b"GET /one HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"/one")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /two HTTP/1.1\r\n")
        assert await end_of(reader) == b""
        assert server.gate.turned_away == {"late": 1}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 70_000, b"413"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 15_000, b"413"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 15_000, b"413"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 2, b"400"),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (UPGRADE.replace(b"/ws", b"/\xc3\xa4") + b"\r\n", b"400"),
        (UPGRADE + b"x: " + b"y" * 10_000 + b"\r\n\r\n", b"431"),
        (UPGRADE + b"x: y\r\n" * 200 + b"\r\n", b"431"),
        (UPGRADE.replace(b"/ws", b"/" + b"w" * 9000) + b"\r\n", b"414"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    ],
    ids=range(10),
)
async def test_a_request_beyond_reason_is_refused_and_closed(request_: bytes, status: bytes) -> None:
    async with listening() as server:
        reader, writer = await server.connect()
        writer.write(request_)
        answer = await end_of(reader)
        assert answer.startswith(b"HTTP/1.1 " + status) or (status == b"413" and not answer)  # reset before it was read
        await until_empty(server.gate)


async def until_empty(gate: Gate) -> None:
    """Wait until nobody is inside."""
    await until(lambda: gate.doorway.strangers + gate.doorway.visitors + gate.doorway.clients == 0)


async def test_a_client_gets_in_past_many_that_say_nothing() -> None:
    async with listening(LimitsConfig(handshakes=10)) as server:
        silent = [await server.connect() for _ in range(50)]
        async with connect(server.address, proxy=None) as client:
            await client.send(b"hello")
            others = [await server.connect() for _ in range(50)]
            await client.send(b"still here")
            await until(lambda: server.received == [b"hello", b"still here"])
            assert server.gate.doorway.strangers == 10
            assert server.gate.doorway.clients == 1
            assert server.gate.turned_away["crowded"] == 90
        assert [await end_of(reader) for reader, _ in silent] == [b""] * len(silent)
        for _, writer in others:
            writer.close()
        await until_empty(server.gate)


async def test_visitors_of_the_api_are_bounded_too() -> None:
    async with listening(LimitsConfig(requests=3)) as server:
        visitors = []
        for _ in range(5):
            reader, writer = await server.connect()
            writer.write(b"GET /here HTTP/1.1\r\nhost: x\r\n\r\n")
            await reader.readuntil(b"/here")
            visitors.append((reader, writer))
        assert await end_of(visitors[0][0]) == await end_of(visitors[1][0]) == b""
        assert server.gate.doorway.visitors == 3


async def test_an_address_that_failed_too_often_is_told_to_wait() -> None:
    async with listening(LimitsConfig(failed_handshakes_per_minute=2)) as server:
        async with connect(server.address, proxy=None):
            pass
        for _ in range(2):
            server.gate.attempts.failed("127.0.0.1", asyncio.get_running_loop().time())
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.address, proxy=None)
        assert refused.value.response.status_code == 429
        assert 0 < int(refused.value.response.headers["retry-after"]) <= 30
        url = f"http://127.0.0.1:{server.port}/page"
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(url)).text == "/page"  # brings no token, so there is nothing to guess
            refusal = await http.get(url, headers={"authorization": "Bearer guess"})
            assert refusal.status_code == 429
            assert 0 < int(refusal.headers["retry-after"]) <= 30
            assert (await http.get(url)).text == "/page"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *(
                "-keyout",
                key,
                "-out",
                cert,
                "-days",
                "2",
                "-subj",
                "/CN=here",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text(Path(key).read_text() + Path(cert).read_text())
    return both


async def test_peers_that_do_not_finish_the_tls_handshake_are_bounded_like_all_strangers(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    known = ssl.create_default_context(cafile=str(certificate))
    async with listening(LimitsConfig(handshakes=5, handshake_s=1.0), tls=context) as server:
        silent = [await server.connect() for _ in range(20)]
        silent[-1][1].write(b"\x16\x03\x01")  # a handshake that begins
        silent[-2][1].write(b"GET / HTTP/1.1\r\n")  # none at all
        async with connect(server.address.replace("ws:", "wss:"), proxy=None, ssl=known) as client:
            await client.send(b"hello")
            await until(lambda: server.received == [b"hello"])
            assert server.gate.doorway.strangers <= 5
            assert [await end_of(reader) for reader, _ in silent[:15]] == [b""] * 15
            for reader, _ in silent[15:]:
                await end_of(reader)
            await client.send(b"still here")
            await until(lambda: server.received == [b"hello", b"still here"])
            async with httpx.AsyncClient(trust_env=False, verify=known) as http:
                answer = await http.get(f"https://127.0.0.1:{server.port}/page")
                assert answer.text == "/page"
        await until_empty(server.gate)


async def test_a_process_that_may_open_no_further_file_takes_connections_again_when_it_may() -> None:
    async with listening() as server:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = socket.socket()
        waiting.setblocking(False)
        with contextlib.closing(waiting):
            free = os.dup(waiting.fileno())  # the lowest number that the next file would get
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                await asyncio.get_running_loop().sock_connect(waiting, ("127.0.0.1", server.port))
                await until(lambda: server.gate.turned_away["unaccepted"] >= 2)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await asyncio.get_running_loop().sock_sendall(waiting, b"GET /here HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await asyncio.get_running_loop().sock_recv(waiting, 4096)).startswith(b"HTTP/1.1 200")
