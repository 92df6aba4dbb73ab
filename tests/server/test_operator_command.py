"""The commands for a running server: what they ask for, and how they end when it does not answer or says no."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from typer.testing import CliRunner, Result

from server import operator_command
from server.config import TlsConfig
from server.tls import server_context
from tests.certificates import Authority

STATUS = {"run_id": "r", "state": "running", "phase": "training", "model_version": 3, "target_rounds": 9}
app = typer.Typer()
operator_command.add_to(app)


async def run(*words: object, **environment: str) -> Result:
    """A command, in a thread, as the server answers from the loop."""
    arguments = [str(word) for word in words]
    runner = CliRunner(env=environment)
    return await asyncio.to_thread(lambda: runner.invoke(app, arguments, catch_exceptions=False))


@asynccontextmanager
async def server(answer: Any = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str]]]:  # noqa: ANN401
    """A server that gives one answer; its URL, and what was asked."""
    asked: list[str] = []
    site = FastAPI()

    @site.api_route("/{path:path}", methods=["GET", "POST"])
    async def take(path: str, request: Request) -> Any:  # noqa: ANN401  # JSON
        asked.append(f"{request.method} /{path} {request.headers.get('authorization', '-')}")
        if isinstance(answer, Exception):
            raise answer
        return STATUS | {"clients": ["a", "b"]} if answer is None else answer

    config = uvicorn.Config(
        site,
        port=0,
        lifespan="off",
        log_config=None,
        log_level="critical",
        ssl_context_factory=None if tls is None else lambda *_: tls,
        timeout_graceful_shutdown=1,
    )
    config.load()
    web = uvicorn.Server(config)
    web.lifespan = config.lifespan_class(config)
    await web.startup()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}", asked
    finally:
        await web.shutdown()


def running_on(folder: Path, url: str) -> Path:
    (folder / "server.json").write_text(json.dumps({"url": url, "pid": 1}))
    return folder


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["pause"], "POST /api/v1/pause"),
        (["resume"], "POST /api/v1/resume"),
        (["status"], "GET /api/v1/status"),
        (["release", "--client-id", "a"], "POST /api/v1/clients/a/release"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_each_command_makes_its_request_and_says_where_the_run_stands(
    words: Sequence[str], asked: str, tmp_path: Path
) -> None:
    async with server() as (url, requests):
        by_folder = await run(*words, "--run-dir", running_on(tmp_path, url), "--token", "t")
        by_address = await run(*words, "--url", url + "/", "--json", FEDMTL_OPERATOR_TOKEN="u")  # noqa: S106
        anonymous = await run(*words, "--url", url)
    assert [result.exit_code for result in (by_folder, by_address, anonymous)] == [0, 0, 0]
    assert requests == [f"{asked} Bearer t", f"{asked} Bearer u", f"{asked} -"]
    assert "run r: running" in by_folder.stdout
    assert "2 clients connected: a, b" in by_folder.stdout
    assert json.loads(by_address.stdout)["model_version"] == 3


async def test_a_server_that_says_no_ends_the_command_with_4_and_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    for status, detail in ((401, "a token is asked for"), (403, "not yours"), (404, "not in quarantine")):
        caplog.clear()
        async with server(HTTPException(status, detail)) as (url, _):
            assert (await run("pause", "--url", url)).exit_code == 4
        assert detail in caplog.text
        assert ("FEDMTL_OPERATOR_TOKEN" in caplog.text) is (status == 401)


async def test_no_answer_or_none_of_a_server_ends_it_with_3(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (await run("status", "--run-dir", tmp_path)).exit_code == 3
    assert "no server runs on" in caplog.text
    async with server() as (url, _):
        pass
    assert (await run("status", "--run-dir", running_on(tmp_path, url))).exit_code == 3
    assert f"no answer from {url}" in caplog.text
    (tmp_path / "server.json").write_text('{"pid": 1')
    assert (await run("status", "--run-dir", tmp_path)).exit_code == 3
    for answer in (Response("hello"), {"x": 1}, [1], HTTPException(500, "broken")):
        async with server(answer) as (url, _):
            assert (await run("status", "--url", url)).exit_code == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--run-dir DIR or --url URL"),
        (["--url", "http://x", "--run-dir", "y"], "--run-dir DIR or --url URL"),
        (["--url", "fed.example:8771"], "expected http"),
        (["--url", "ws://127.0.0.1:1"], "expected http"),
        (["--url", "http://127.0.0.1:1/ws"], "expected http"),
        (["--url", "http://x:port"], "--url"),
        (["--url", "https://127.0.0.1:1", "--client-cert", "x"], "belong together"),
        (["--url", "https://127.0.0.1:1", "--ca", "nowhere.pem"], "nowhere.pem"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_bad_usage_ends_with_2(words: list[str], told: str, caplog: pytest.LogCaptureFixture) -> None:
    assert (await run("pause", *words)).exit_code == 2
    assert told in caplog.text


async def test_the_server_is_verified_and_may_ask_for_a_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    files, own = authority.server(), authority.client("carol")
    tls = TlsConfig(cert=files.cert, key=files.key, client_ca=authority.ca)
    async with server(tls=server_context(tls)) as (url, requests):
        everywhere = url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104  # how such a server calls itself
        trusting = ("--ca", authority.ca, "--client-cert", own.cert, "--client-key", own.key)
        assert (await run("status", "--url", url)).exit_code == 3
        assert "--ca FILE" in caplog.text
        assert (await run("status", "--url", url, "--ca", authority.ca)).exit_code == 3
        assert requests == []
        assert (await run("status", "--run-dir", running_on(tmp_path, everywhere), *trusting)).exit_code == 0
        assert requests == ["GET /api/v1/status -"]


async def test_a_token_in_the_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    await run("pause", "--url", "http://127.0.0.1:1", "--token", "t")
    assert "unencrypted" not in caplog.text
    await run("pause", "--url", "http://nowhere.invalid:1", "--token", "t")
    assert "nowhere.invalid unencrypted" in caplog.text
