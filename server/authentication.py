"""Who a peer is: tokens and client certificates, decided at start and asked at every hello and operator request.

==========================  ================================  =======================================
the server has              a client shows                    an operator shows
==========================  ================================  =======================================
nothing (loopback, or       nothing                           nothing
``--allow-anonymous``)
tokens                      its token                         an operator's token
mutual TLS                  a certificate with its id         a certificate and an operator's token
both                        both                              a certificate and an operator's token
==========================  ================================  =======================================

Under mutual TLS, tokens are asked of clients once the file holds one for a client, revoked or not: so a file
with nothing but an operator's token does not lock the clients out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from common.errors import ConfigError, FedmtlError, ProtocolError
from server.admission import assign_tasks
from server.config import ServerConfig
from server.tls import Peer, names_of
from server.tokens import TOKENS_FILE, LiveTokens, StoredToken, find, utc_now

log = logging.getLogger("fedmtl.server")
CREDENTIALS_ENDED: Final = "the client's token was revoked or has expired"
#: Said of a token whose secret is not known here, whatever is wrong with it: a stranger learns nothing.
_UNKNOWN: Final = "the token is not one of this server's"


class OperatorRefused(FedmtlError):
    """A request that an operator's token would have let through.

    Args:
        status: 401: who asks is not known; 403: it is, and may not.
        reason: a sentence for people.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an admitted connection rests on.

    Attributes:
        token_id: the public id of its token; empty when it needed none.
    """

    token_id: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A client that may take part.

    Attributes:
        tasks: what it trains in this run.
        credentials: for `Authenticator.still_valid`.
    """

    tasks: frozenset[str]
    credentials: Credentials


class Authenticator:
    """Decides who may take part in a run and who may operate it.

    Args:
        tasks: the tasks of the run.
        tokens: the file of tokens, if tokens are asked for.
        mutual_tls: every peer has proved to hold a certificate of the operator's authority.
        now: the time; tests set it.

    Attributes:
        on_failure: called with the peer's address when a request for an operator is refused. (A refused hello is
            a `ProtocolError` with its code, which the connection counts.)
    """

    def __init__(
        self,
        tasks: Collection[str],
        tokens: LiveTokens | None = None,
        *,
        mutual_tls: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.on_failure: Callable[[str], None] | None = None
        self._tasks = frozenset(tasks)
        self._tokens = tokens
        self._mutual_tls = mutual_tls
        self._now = now

    @property
    def on(self) -> bool:
        """Whether anybody has to prove anything."""
        return self._mutual_tls or self._tokens is not None

    def client(
        self, token: str | None, client_id: str, requested: Sequence[str], peer: Peer, *, whole_model: bool = False
    ) -> Admitted:
        """Admit a client that says hello.

        Args:
            token: what its hello holds.
            client_id: who it says it is.
            requested: the tasks it names; none: those of its token, where only one is possible.
            peer: the other end of its connection.
            whole_model: it asks for the slots of all tasks, not of its own alone.

        Raises:
            ProtocolError: `authentication`, `task_not_allowed` or `unknown_task`. Before it knows the
                peer it names no task and does not tell an unknown token from a wrong one.
        """
        if self._mutual_tls:
            self._require_certificate(client_id, peer)
        record = self._token_of(token, client_id) if self._client_tokens_asked() else None
        if record is None:
            return Admitted(assign_tasks(client_id, requested, self._tasks), Credentials())
        allowed = self._tasks if record.tasks == "*" else self._tasks & frozenset(record.tasks)
        if whole_model and allowed != self._tasks:
            raise ProtocolError(
                "task_not_allowed",
                f"the whole model (sync full) holds all tasks, and the token of {client_id!r} is for "
                f"{', '.join(sorted(allowed)) or 'none of them'}; take the slice (sync slice)",
            )
        return Admitted(self._tasks_of(client_id, requested, allowed), Credentials(record.id))

    def still_valid(self, credentials: Credentials) -> bool:
        """Whether a client that was admitted may stay: its token is neither revoked nor expired meanwhile."""
        if not credentials.token_id or self._tokens is None:
            return True
        record = self._tokens.last_good().get(credentials.token_id)
        return record is not None and record.state(self._now()) == "active"

    def operator(self, authorization: str | None, peer: Peer) -> str:
        """The name of the operator who makes a request; ``anonymous`` where nobody has to prove anything.

        Args:
            authorization: the request's header of that name.
            peer: the other end of its connection.

        Raises:
            OperatorRefused: there is no token, it is not an operator's, or is no longer taken.
        """
        if not self.on:
            return "anonymous"
        try:
            return self._operator_of(authorization)
        except OperatorRefused:
            if self.on_failure is not None:
                self.on_failure(peer.address)
            raise

    # --- one kind of proof each

    def _require_certificate(self, client_id: str, peer: Peer) -> None:
        if client_id not in names_of(peer.certificate or {}):
            raise ProtocolError(
                "authentication",
                f"the client certificate is not for {client_id!r}: its common name or a DNS name must be the id",
            )

    def _client_tokens_asked(self) -> bool:
        if self._tokens is None:
            return False
        known = self._tokens.current().values()
        # A file that broke may have held some.
        return not self._mutual_tls or self._tokens.broken or any(token.role == "client" for token in known)

    def _token_of(self, presented: str | None, client_id: str) -> StoredToken:
        assert self._tokens is not None
        record = find(presented, self._tokens.current())
        if record is None:
            problem = _UNKNOWN if presented else "this server asks for a token"
        elif (state := record.state(self._now())) != "active":
            problem = "the token has expired" if state == "expired" else "the token was revoked"
        elif (record.role, record.client_id) != ("client", client_id):
            problem = f"the token is not for a client called {client_id!r}"
        else:
            return record
        raise ProtocolError(
            "authentication",
            f"{problem}; get one for this client id from the operator (python -m server tokens add) and give it with "
            "--token or in FEDMTL_TOKEN",
        )

    def _operator_of(self, authorization: str | None) -> str:
        scheme, _, presented = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer":
            raise OperatorRefused(401, "an operator's token is asked for here: Authorization: Bearer TOKEN")
        record = find(presented.strip(), self._tokens.current() if self._tokens is not None else {})
        if record is None:
            raise OperatorRefused(401, f"{_UNKNOWN}; python -m server tokens add --operator makes one")
        if (state := record.state(self._now())) != "active":
            raise OperatorRefused(401, f"the token {'has expired' if state == 'expired' else 'was revoked'}")
        if record.role != "operator":
            raise OperatorRefused(403, "a client's token takes part and does not operate; this needs an operator's")
        return record.client_id

    def _tasks_of(self, client_id: str, requested: Sequence[str], allowed: frozenset[str]) -> frozenset[str]:
        mine = ", ".join(sorted(allowed)) or "none of this run's"
        if not requested:
            if len(allowed) == 1:
                return allowed  # the token says it
            matches = frozenset(task for task in allowed if task in client_id)
            if len(matches) != 1:
                raise ProtocolError("unknown_task", f"name the tasks with --tasks; the token is for: {mine}")
            return matches
        tasks = assign_tasks(client_id, requested, self._tasks)
        if foreign := sorted(tasks - allowed):
            raise ProtocolError("task_not_allowed", f"the token is not for {', '.join(foreign)}, but for: {mine}")
        return tasks


def build_authenticator(server: ServerConfig, run_folder: Path, tasks: Collection[str]) -> Authenticator:
    """Decide whether peers have to say who they are, from the configuration and what lies in the run directory.

    Args:
        server: where and how the server is to listen.
        run_folder: the run directory, which need not exist yet.
        tasks: the tasks of the run.

    Raises:
        ConfigError: the server would be open to others without having been told so, or its tokens can't be used.
    """
    mutual_tls = server.tls is not None and server.tls.client_ca is not None
    path = server.auth.tokens or run_folder / TOKENS_FILE
    tokens = LiveTokens(path)
    # A link that leads nowhere counts as a file: it was meant to be one.
    if server.auth.tokens is not None or path.exists() or path.is_symlink():
        _require_usable(tokens, mutual_tls=mutual_tls)
    elif mutual_tls:
        tokens = LiveTokens(path, may_come=True)  # until it does, clients need none and nobody operates
    elif server.on_loopback or server.allow_anonymous:
        if not server.on_loopback:
            log.warning("no authentication: everybody who reaches %s may take part and operate the run", server.host)
        return Authenticator(tasks)
    else:
        raise ConfigError(
            f"server.host {server.host!r} is not a loopback address, and nothing says who may take part. Either issue "
            f"tokens (python -m server tokens add --client-id ID --tasks TASK --run-dir {run_folder}, or name their "
            "file in server.auth.tokens), or ask for client certificates (--tls-client-ca), or let everybody who can "
            "reach the port take part (--allow-anonymous, or server.allow_anonymous: true)"
        )
    if server.tls is None and not server.on_loopback:
        log.warning("tokens will travel unencrypted: give --tls-cert and --tls-key unless a proxy does TLS")
    return Authenticator(tasks, tokens, mutual_tls=mutual_tls)


def _require_usable(tokens: LiveTokens, *, mutual_tls: bool) -> None:
    known = tokens.current()
    if tokens.broken:
        raise ConfigError(
            f"{tokens.path}: the file of tokens can't be used (the log says why); `python -m server tokens` makes it"
        )
    now = utc_now()
    clients = sum(token.role == "client" and token.state(now) == "active" for token in known.values())
    log.info("tokens: %d of clients in %s", clients, tokens.path)
    if not clients and not mutual_tls:
        log.warning("no client can take part yet: issue tokens with `python -m server tokens add`")
