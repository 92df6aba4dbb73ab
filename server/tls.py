"""TLS on the server: the context from its files, and what a connection says about its peer."""

from __future__ import annotations

import ssl
from asyncio.transports import BaseTransport
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import HTTPConnection
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from common.errors import ConfigError
from server.config import TlsConfig

#: What `ssl.SSLSocket.getpeercert` gives: the names and dates of a certificate that was verified.
Certificate = Mapping[str, Any]
_IN_STATE = "peer_certificate"


def server_context(tls: TlsConfig) -> ssl.SSLContext:
    """The context to listen with: TLS 1.2 at least; with `client_ca`, nobody without a certificate gets through.

    Raises:
        ConfigError: a file is missing, holds no certificate or key, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("cert", tls.cert), ("key", tls.key), ("client_ca", tls.client_ca)):
        if path is not None:
            _require_readable(name, path)
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except (ssl.SSLError, _EncryptedKey) as error:
        raise ConfigError(_why_no_chain(tls, error)) from error
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(cafile=tls.client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"server.tls.client_ca: {tls.client_ca} holds no certificate in PEM form") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _EncryptedKey(Exception):
    """OpenSSL asks for a password; left to itself it would ask at the terminal, and a service would hang."""


def _no_password() -> str:
    raise _EncryptedKey


def _require_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"server.tls.{name}: cannot read {path}: {error.strerror}") from error


def _why_no_chain(tls: TlsConfig, error: ssl.SSLError | _EncryptedKey) -> str:
    if isinstance(error, _EncryptedKey):
        return f"server.tls.key: {tls.key} is encrypted; give a key without a password, readable by its owner alone"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"server.tls: {tls.key} is not the private key of the certificate in {tls.cert}"
    return (
        f"server.tls: {tls.cert} and {tls.key} are no certificate and private key in PEM form "
        f"({error.reason or error.strerror or error})"
    )


def names_of(certificate: Certificate) -> frozenset[str]:
    """Whom a verified certificate names: the common names of its subject and its DNS names."""
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    alternative = certificate.get("subjectAltName", ())
    return frozenset(
        [value for kind, value in subject if kind == "commonName"]
        + [value for kind, value in alternative if kind == "DNS"]
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, as the transport knows it.

    Attributes:
        address: its IP address; empty when there is none.
        certificate: what it proved to hold, under mutual TLS.
    """

    address: str = ""
    certificate: Certificate | None = None


def peer_of(connection: HTTPConnection) -> Peer:
    """The peer of a request or WebSocket."""
    state = connection.scope.get("state", {})
    # Of the transport itself: `connection.client` is what a proxy's header says, which anybody may write.
    address = state["visit"].address if "visit" in state else ""
    return Peer(address, state.get(_IN_STATE))


class CertifiedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which lets the application see the peer's certificate (`peer_of`)."""

    def connection_made(self, transport: BaseTransport) -> None:
        """Called when the upgrade is asked for, after the TLS handshake."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            # A copy: what uvicorn hands in is shared by all connections.
            self.app_state = {**self.app_state, _IN_STATE: tls.getpeercert()}
