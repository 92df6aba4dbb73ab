"""Tokens: who may take part and operate, kept as hashes in one file that is re-read whenever it changes.

A token is ``fmtl_<id>_<secret>``: the id is public and finds the record, the secret is 256 random bits and is
stored as its SHA-256 alone. A slow hash (scrypt, argon2) protects what people make up, for it can be guessed;
256 random bits can't, and a slow hash would let strangers burn the server's time.

Everything here blocks for a small file at most.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from common.durable import DURABLE, Disk
from common.errors import ConfigError
from common.strict_model import StrictModel

log = logging.getLogger("fedmtl.server")
#: Beside the run's other files, unless the configuration names another.
TOKENS_FILE: Final = "tokens.json"
SECRET_BYTES: Final = 32
_SHAPE: Final = re.compile(r"fmtl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
#: What an unknown id is compared with: no secret has this hash, and the comparison takes the time of any other.
_NOBODY: Final = "0" * 64
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class StoredToken(StrictModel):
    """What the file keeps of one token: everything but the secret."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    """The public part, by which it is listed and revoked."""
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hex SHA-256 of the secret part."""
    role: Literal["client", "operator"]
    """client: takes part. operator: pauses, resumes, lifts quarantines and reads weights."""
    client_id: Name
    """The one client it is for, or the operator's name."""
    tasks: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] | Literal["*"] = ()
    """The tasks that the client may train, or ``*``: all of them."""
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    @model_validator(mode="after")
    def _clients_have_tasks(self) -> StoredToken:
        if (self.role == "client") != bool(self.tasks):
            raise ValueError("a client's token names its tasks, or *; an operator's names none")
        return self

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether it is taken at this moment."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


class _Document(StrictModel):
    """The whole file."""

    version: Literal[1] = 1
    tokens: tuple[StoredToken, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> _Document:
        if len({token.id for token in self.tokens}) != len(self.tokens):
            raise ValueError("two tokens have one id")
        return self


_DOCUMENT: Final = TypeAdapter(_Document)


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def find(presented: str | None, tokens: Mapping[str, StoredToken]) -> StoredToken | None:
    """The record whose secret a presented token holds, whatever its state; None for any other text.

    A wrong secret, an unknown id and a text that is no token take the same path, and the comparison of
    secrets takes the same time wherever they differ.

    Args:
        presented: what a peer sent.
        tokens: records by id.
    """
    parts = _SHAPE.fullmatch(presented or "")
    token_id, secret = parts.groups() if parts else ("", "")
    token = tokens.get(token_id)
    right = hmac.compare_digest(_digest(secret), token.secret_sha256 if token else _NOBODY)
    return token if right else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenStore:
    """The file as the commands see it: read and changed by one process at a time.

    Attributes:
        path: the file; made by the first `add`, readable by its owner alone.
        disk: how it is written.
    """

    path: Path
    disk: Disk = DURABLE

    def read(self) -> dict[str, StoredToken]:
        """The records by id, in the order in which they were made; none when there is no file.

        Raises:
            ConfigError: the file cannot be read or is not one.
        """
        try:
            return parse_tokens(self.path.read_bytes(), self.path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot read the tokens: {error.strerror}") from error

    def add(
        self,
        role: Literal["client", "operator"],
        client_id: str,
        tasks: Sequence[str] | Literal["*"] = (),
        expires: datetime | None = None,
    ) -> tuple[str, StoredToken]:
        """Make a token.

        Returns:
            The token, which is not kept and cannot be had again, and its record.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        secret = secrets.token_urlsafe(SECRET_BYTES)
        with self._locked():
            tokens = self.read()
            token_id = next(found for found in iter(lambda: secrets.token_hex(6), None) if found not in tokens)
            record = StoredToken(
                id=token_id,
                secret_sha256=_digest(secret),
                role=role,
                client_id=client_id,
                tasks=tasks if tasks == "*" else tuple(tasks),
                created=utc_now(),
                expires=expires,
            )
            self._write([*tokens.values(), record])
        return f"fmtl_{token_id}_{secret}", record

    def revoke(self, chosen: Callable[[StoredToken], bool]) -> list[StoredToken]:
        """Revoke the chosen tokens for good; those that were revoked already stay as they are.

        Returns:
            The records that were revoked now.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        now = utc_now()
        with self._locked():
            tokens = self.read()
            gone = {
                token.id: token.model_copy(update={"revoked": now})
                for token in tokens.values()
                if token.revoked is None and chosen(token)
            }
            if gone:
                self._write(list((tokens | gone).values()))
        return list(gone.values())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Between reading and writing nobody else writes; the lock has a file of its own, as the other is replaced."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write the tokens: {error.strerror}") from error

    def _write(self, tokens: Sequence[StoredToken]) -> None:
        document = _Document(tokens=tuple(tokens)).model_dump(mode="json")
        self.disk.replace(self.path, json.dumps(document, indent=1).encode() + b"\n", mode=0o600)


def parse_tokens(content: bytes, path: Path) -> dict[str, StoredToken]:
    """The records in a file's content.

    Raises:
        ConfigError: it is not a file of tokens.
    """
    try:
        document = _DOCUMENT.validate_json(content)
    except ValidationError as error:
        # Not the values: they are what only the file's owner may read.
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'the file'}: {p['msg']}" for p in error.errors()[:3])
        raise ConfigError(f"{path} is not a file of tokens: {problems}") from error
    return {token.id: token for token in document.tokens}


class LiveTokens:
    """The file as a running server sees it: read again whenever it changes, so that a revocation takes effect.

    A file that is gone, unreadable or malformed holds no token for anybody, which the log says once. Used by one
    thread, that of the event loop.

    Args:
        path: the file.
        may_come: the file need not be there yet; once it was, it has to stay.
    """

    def __init__(self, path: Path, *, may_come: bool = False) -> None:
        self.path = path
        self._may_come = may_come
        self._seen: tuple[int, int, int] | None = None
        self._tokens: dict[str, StoredToken] = {}
        self._last_good: dict[str, StoredToken] = {}
        self._trouble = ""

    @property
    def broken(self) -> bool:
        """Whether the last look at the file failed."""
        return bool(self._trouble)

    def current(self) -> Mapping[str, StoredToken]:
        """The records by id, as the file holds them now."""
        try:
            self._refresh()
        except (OSError, ConfigError) as error:
            if self._may_come and isinstance(error, FileNotFoundError):
                return self._tokens
            self._seen, self._tokens = None, {}
            trouble = str(error)
            if trouble != self._trouble:
                log.error("nobody is let in: no use of the tokens in %s: %s", self.path, trouble)  # noqa: TRY400
            self._trouble = trouble
        return self._tokens

    def last_good(self) -> Mapping[str, StoredToken]:
        """The records as they were when the file could last be read: for those who are in already.

        Whoever moves the file for a moment, or saves it half, must not throw every client out for good.
        """
        self.current()
        return self._last_good

    def _refresh(self) -> None:
        if self._signature(self.path.stat()) != self._seen or self._trouble:
            with self.path.open("rb") as file:
                # Of the file that is read: the name may stand for another one a moment later.
                seen = self._signature(os.fstat(file.fileno()))
                self._tokens = self._last_good = parse_tokens(file.read(), self.path)
            if self._seen is not None or self._trouble:
                log.info("read the tokens in %s again: %d records", self.path, len(self._tokens))
            self._seen, self._trouble, self._may_come = seen, "", False

    @staticmethod
    def _signature(status: os.stat_result) -> tuple[int, int, int]:
        return status.st_mtime_ns, status.st_size, status.st_ino
