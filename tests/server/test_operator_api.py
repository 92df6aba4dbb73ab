"""The paths that change a run: for operators, and not for other sites' pages."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from server.authentication import Authenticator
from server.operator_api import OperatorGate, add_operator_api, same_site
from server.tokens import LiveTokens, TokenStore

HERE = "http://fed.example:8771"


class FakeRun:
    """Remembers what it was told; `mallory` is in quarantine."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []
        self.settled: list[tuple[str, ...]] = []

    def pause(self, by: str) -> None:
        self.done.append(("pause", by))

    def unpause(self, by: str) -> None:
        self.done.append(("unpause", by))

    def release(self, client_id: str, by: str) -> bool:
        self.done.append(("release", client_id, by))
        return client_id == "mallory"

    async def caught_up(self) -> None:
        self.settled = list(self.done)


class Site:
    """The API of a fake run, asked without a socket."""

    def __init__(self, authenticator: Authenticator, *, on_loopback: bool) -> None:
        self.run = FakeRun()
        app = FastAPI()
        gate = OperatorGate(authenticator, on_loopback=on_loopback)
        add_operator_api(app, self.run, gate, lambda: {"done": len(self.run.done)})
        self._transport = httpx.ASGITransport(app)

    async def post(self, path: str, token: str | None = None, **headers: str) -> httpx.Response:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with httpx.AsyncClient(transport=self._transport, base_url=HERE) as http:
            return await http.post(f"/api/v1/{path}", headers=headers)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "tokens.json")


@pytest.fixture
def site(store: TokenStore) -> Site:
    store.add("client", "someone", "*")
    return Site(Authenticator(("sst2",), LiveTokens(store.path)), on_loopback=False)


PATHS = ["pause", "resume", "clients/mallory/release"]


async def test_an_operator_changes_the_run_and_sees_its_new_status(site: Site, store: TokenStore) -> None:
    token, _ = store.add("operator", "carol")
    answers = [await site.post(path, token) for path in PATHS]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"done": n}) for n in (1, 2, 3)]
    done = [("pause", "carol"), ("unpause", "carol"), ("release", "mallory", "carol")]
    assert site.run.done == done
    assert site.run.settled == done, "the status is that of after"
    answer = await site.post("clients/alice/release", token)
    assert answer.status_code == 404
    assert "'alice'" in answer.text


@pytest.mark.parametrize("path", [*PATHS, "clients/alice/release"])
async def test_nobody_else_does(path: str, site: Site, store: TokenStore) -> None:
    client, _ = store.add("client", "carol", "*")
    for token in (None, "", "fmtl_x", client[:-1] + "."):
        answer = await site.post(path, token)
        assert answer.status_code == 401, token
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    answer = await site.post(path, client)
    assert answer.status_code == 403
    assert "www-authenticate" not in answer.headers
    assert site.run.done == []


@pytest.mark.parametrize("origin", ["http://evil.example", "https://fed.example:1", "null", "", "file://", "http://["])
async def test_a_page_of_another_site_is_refused_whatever_its_token(origin: str, site: Site, store: TokenStore) -> None:
    token, _ = store.add("operator", "carol")
    assert (await site.post("pause", token, Origin=origin)).status_code == 403
    assert site.run.done == []
    assert (await site.post("pause", token, Origin=HERE)).status_code == 200


async def test_a_server_open_to_this_machine_takes_this_machines_pages_alone() -> None:
    """A name that was made to point to 127.0.0.1 is the same origin as far as the browser is concerned."""
    open_site = Site(Authenticator(("sst2",)), on_loopback=True)
    assert (await open_site.post("pause", Origin=HERE)).status_code == 403
    for own in ("localhost:8771", "127.0.0.1:8771", "[::1]:8771"):
        assert (await open_site.post("pause", Origin=f"http://{own}", Host=own)).status_code == 200
    assert (await open_site.post("resume")).status_code == 200, "programs name no origin"
    assert open_site.run.done[-1] == ("unpause", "anonymous")


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://a", "a", True),
        ("http://a", "a:80", True),
        ("https://a", "a", True),
        ("https://a", "a:443", True),
        ("http://A.example:8771", "a.EXAMPLE:8771", True),
        ("http://[::1]:1", "[::1]:1", True),
        ("http://a", "a:443", False),
        ("http://a", "b", False),
        ("http://a.b", "a", False),
        ("http://a:1", "a:2", False),
        ("http://a@b", "a", False),
        ("http://a:x", "a", False),
        ("ftp://a", "a", False),
        ("http://", "", False),
        ("a", "a", False),
    ],
)
def test_which_origin_is_the_host(origin: str, host: str, same: bool) -> None:
    assert same_site(origin, host) is same


@given(st.text(), st.text())
def test_any_header_has_an_answer(origin: str, host: str) -> None:
    assert same_site(origin, host) in (True, False)
