"""TLS to the server: whom this client trusts, how it proves who it is, and what a failed handshake means."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import ConfigError, FedmtlError, Refused


class NotTrusted(Refused):
    """The server's certificate can't be verified; trying again changes nothing."""

    def __init__(self, reason: str) -> None:
        FedmtlError.__init__(self, reason)
        self.code, self.reason = "tls", reason


def client_tls(url: str, ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """How to speak TLS to the server at `url`; None for ``ws://``.

    Args:
        url: the server's address.
        ca: certificates (PEM) to verify the server against, in place of the system's.
        cert: this client's certificate (PEM), with what leads up to its authority.
        key: its private key (PEM), not encrypted.

    Raises:
        ConfigError: options that don't go together; a file that is missing, malformed or does not fit.
    """
    if not url.startswith("wss://"):
        for option, path in (("--ca", ca), ("--cert", cert), ("--key", key)):
            if path is not None:
                raise ConfigError(f"{option} {path}: there is no TLS over {url}; give --server wss://...")
        return None
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key go together: a certificate and its private key")
    context = _trusting(ca)
    if cert is not None and key is not None:
        _require_readable("--cert", cert)
        _require_readable("--key", key)
        try:
            # The password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(cert, key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--cert {cert} --key {key}: {_said(error)}; expected are PEM files, the key without a password and "
                "that of the certificate"
            ) from error
    return context


def _trusting(ca: Path | None) -> ssl.SSLContext:
    if ca is not None:
        _require_readable("--ca", ca)
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ca {ca}: {_said(error)}; expected is a PEM file of certificates") from error


def _require_readable(option: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}") from error


def travels_in_clear(url: str) -> bool:
    """Whether what is sent to `url` can be read on the way: no TLS, and not to this machine itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "wss" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def trust_failure(url: str, error: BaseException) -> NotTrusted | None:
    """The error for good behind a failed connection, where the server is not trusted; else None."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NotTrusted(
                f"the certificate of {url} can't be verified: {cause.verify_message or cause}. Give --ca FILE with the "
                "certificate of the authority that signed it, and connect by a name that it was made for."
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            yield one
            waiting += [one.__context__, one.__cause__]


def _said(error: Exception) -> str:
    """What went wrong, without OpenSSL's source lines."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).replace("_", " ").lower()
