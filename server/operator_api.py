"""The HTTP paths that change a run, and the gate before them and before the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, urlsplit

from fastapi import FastAPI, HTTPException, Request
from starlette.requests import HTTPConnection

from server.authentication import Authenticator, OperatorRefused
from server.config import is_loopback
from server.tls import peer_of

log = logging.getLogger("fedmtl.server")
_PORTS: Final = {"http": 80, "https": 443}


class Operable(Protocol):
    """What an operator may do to a run."""

    def pause(self, by: str) -> None:
        """Begin and close no round until `unpause`."""

    def unpause(self, by: str) -> None:
        """Go on."""

    def release(self, client_id: str, by: str) -> bool:
        """Lift a client's quarantine; False when there is none."""

    async def caught_up(self) -> None:
        """Wait until what was asked for is done."""


class OperatorGate:
    """Lets operators through, and keeps the pages of other sites out.

    Args:
        authenticator: knows the operators.
        on_loopback: the server listens to this machine alone.
    """

    def __init__(self, authenticator: Authenticator, *, on_loopback: bool) -> None:
        self._authenticator = authenticator
        self._on_loopback = on_loopback

    def operator(self, request: HTTPConnection) -> str:
        """The name of the operator who makes a request.

        Raises:
            HTTPException: 401 or 403, as `Authenticator.operator` says.
        """
        try:
            return self._authenticator.operator(request.headers.get("authorization"), peer_of(request))
        except OperatorRefused as refused:
            challenge = {"WWW-Authenticate": 'Bearer realm="fedmtl"'} if refused.status == 401 else None
            raise HTTPException(refused.status, str(refused), challenge) from refused

    def is_foreign(self, connection: HTTPConnection) -> bool:
        """Whether a browser made a request on behalf of another site's page (programs name no origin).

        A server that is open because only this machine can reach it takes origins of this machine only: a page
        whose name was made to point here calls itself the same origin.
        """
        origin = connection.headers.get("origin")
        if origin is None:
            return False
        open_to_this_machine = self._on_loopback and not self._authenticator.on
        return not same_site(origin, connection.headers.get("host", "")) or (
            open_to_this_machine and not is_loopback(urlsplit(origin).hostname or "")
        )

    def operator_of_change(self, request: HTTPConnection) -> str:
        """The same as `operator`, of a request that changes something: it may not come from another site's page."""
        if self.is_foreign(request):
            log.warning("refused %s for a page of %s", request.url.path, request.headers["origin"][:200])
            raise HTTPException(403, "this request was made by a page of another site")
        return self.operator(request)


def add_operator_api(app: FastAPI, run: Operable, gate: OperatorGate, status: Callable[[], dict[str, Any]]) -> None:
    """Add the paths with which an operator changes a run; each answers with the run's new status."""

    @app.post("/api/v1/pause")
    async def pause(request: Request) -> dict[str, Any]:
        by = gate.operator_of_change(request)
        run.pause(by)
        await run.caught_up()
        return status()

    @app.post("/api/v1/resume")
    async def resume(request: Request) -> dict[str, Any]:
        by = gate.operator_of_change(request)
        run.unpause(by)
        await run.caught_up()
        return status()

    @app.post("/api/v1/clients/{client_id}/release")
    async def release(client_id: str, request: Request) -> dict[str, Any]:
        by = gate.operator_of_change(request)
        if not run.release(client_id, by):
            raise HTTPException(404, f"no client called {client_id!r} is in quarantine")
        await run.caught_up()
        return status()


def same_site(origin: str, host: str) -> bool:
    """Whether the ``Origin`` of a request is the site that its ``Host`` names; ``null`` and nonsense are not."""
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{host}")
        return page.scheme in _PORTS and bool(page.hostname) and _address(page) == _address(here)
    except ValueError:
        return False


def _address(parts: SplitResult) -> tuple[str | None, int]:
    return parts.hostname, parts.port or _PORTS[parts.scheme]
