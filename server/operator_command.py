"""``python -m server pause``, ``resume``, ``release`` and ``status``: an operator's requests to a running server."""

from __future__ import annotations

import json
import logging
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import httpx
import typer

from common.errors import EXIT_REFUSED, EXIT_RUN_FAILED, ConfigError, FedmtlError
from server.command_end import errors_as_exit_code
from server.config import is_loopback

log = logging.getLogger("fedmtl.server")
#: Written into the run directory by a running server: {"url": ..., "pid": ...}.
SERVER_FILE: Final = "server.json"
PATIENCE_S: Final = 10.0

RunDir = Annotated[Path | None, typer.Option(help="The run directory of a server on this machine.")]
Url = Annotated[str | None, typer.Option(help="The server's address, such as https://fed.example.org:8771.")]
Token = Annotated[
    str | None, typer.Option(envvar="FEDMTL_OPERATOR_TOKEN", show_envvar=True, help="An operator's token, if asked.")
]
Ca = Annotated[Path | None, typer.Option(help="PEM certificates of who signed the server's; default the system's.")]
Cert = Annotated[Path | None, typer.Option(help="Mutual TLS: the operator's own certificate, PEM.")]
Key = Annotated[Path | None, typer.Option(help="Mutual TLS: its private key, PEM.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole status document.")]


class ServerUnreachable(FedmtlError):
    """No answer, or none that makes sense."""

    exit_code = EXIT_RUN_FAILED


class RequestRefused(FedmtlError):
    """The server does not do it: who asks may not, or there is nothing to do."""

    exit_code = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Target:
    """Where a command's request goes, and as whom.

    Attributes:
        run_dir: names the server by its run directory.
        url: names it by its address; the one of the two that is given counts.
        token: an operator's token.
        ca: whom to trust to have signed the server's certificate; None: the system's authorities.
        cert, key: the operator's certificate under mutual TLS.
    """

    run_dir: Path | None
    url: str | None
    token: str | None
    ca: Path | None
    cert: Path | None
    key: Path | None

    def address(self) -> str:
        """The server's URL, without a slash at its end.

        Raises:
            ConfigError: neither or both of run directory and URL are given, or it is no URL.
            ServerUnreachable: no server runs in the run directory.
        """
        if (self.run_dir is None) == (self.url is None):
            raise ConfigError("which server? give --run-dir DIR or --url URL")
        text = self.url if self.url is not None else _url_in(self.run_dir or Path())
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url {text!r}: {error}") from error
        if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/"):
            raise ConfigError(f"--url {text!r}: expected http://HOST:PORT or https://HOST:PORT")
        if url.host in ("0.0.0.0", "::"):  # noqa: S104  # what a server that listens everywhere calls itself
            url = url.copy_with(host="localhost" if url.scheme == "https" else "127.0.0.1")
        if self.token is not None and url.scheme == "http" and not is_loopback(url.host):
            log.warning("the token goes to %s unencrypted", url.host)
        return str(url).rstrip("/")

    def ask(self, method: Literal["GET", "POST"], path: str) -> dict[str, Any]:
        """Make one request; the answer is the run's status.

        Raises:
            ConfigError: the options make no request.
            ServerUnreachable: there is no answer, or it is no status.
            RequestRefused: the server says no.
        """
        address = self.address()
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with httpx.Client(verify=self._context(), trust_env=False, timeout=PATIENCE_S, headers=headers) as http:
            try:
                answer = http.request(method, f"{address}{path}")
            except (httpx.TransportError, ssl.SSLError) as error:
                raise ServerUnreachable(f"no answer from {address}: {_explained(error)}") from error
        return _status_in(answer, address)

    def _context(self) -> ssl.SSLContext:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--client-cert and --client-key belong together")
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path is not None)
            raise ConfigError(f"cannot use {files}: {error.strerror or error} (PEM files are expected)") from error
        return context


def pause(
    run_dir: RunDir = None,
    url: Url = None,
    token: Token = None,
    ca: Ca = None,
    client_cert: Cert = None,
    client_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Pause a running run: updates are still taken, but no round begins or closes until `resume`."""
    _carry_out(Target(run_dir, url, token, ca, client_cert, client_key), "POST", "pause", as_json=as_json)


def resume(
    run_dir: RunDir = None,
    url: Url = None,
    token: Token = None,
    ca: Ca = None,
    client_cert: Cert = None,
    client_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a paused run, whose server is running. (A run whose server has ended: `--resume --run-dir DIR`.)"""
    _carry_out(Target(run_dir, url, token, ca, client_cert, client_key), "POST", "resume", as_json=as_json)


def release(
    client_id: Annotated[str, typer.Option(help="The client in quarantine.")],
    run_dir: RunDir = None,
    url: Url = None,
    token: Token = None,
    ca: Ca = None,
    client_cert: Cert = None,
    client_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Lift the quarantine of a client of a running run."""
    path = f"clients/{quote(client_id, safe='')}/release"
    _carry_out(Target(run_dir, url, token, ca, client_cert, client_key), "POST", path, as_json=as_json)


def status(
    run_dir: RunDir = None,
    url: Url = None,
    token: Token = None,
    ca: Ca = None,
    client_cert: Cert = None,
    client_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say where a running run stands."""
    _carry_out(Target(run_dir, url, token, ca, client_cert, client_key), "GET", "status", as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the server's command line."""
    for command in (pause, resume, release, status):
        app.command()(command)


def _carry_out(target: Target, method: Literal["GET", "POST"], path: str, *, as_json: bool) -> None:
    with errors_as_exit_code():
        document = target.ask(method, f"/api/v1/{path}")
        sys.stdout.write((json.dumps(document, indent=1) if as_json else _in_words(document)) + "\n")


def _url_in(run_dir: Path) -> str:
    path = run_dir / SERVER_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["url"])
    except FileNotFoundError as error:
        raise ServerUnreachable(f"no server runs on {run_dir} (there is no {SERVER_FILE})") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerUnreachable(f"{path} does not say where the server is: {error!r}; give --url") from error


def _status_in(answer: httpx.Response, address: str) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or (answer.is_success and "run_id" not in document):
        raise ServerUnreachable(f"{address} is no fedmtl server: it answered {answer.status_code}")
    if answer.is_success:
        return document
    said = f"{answer.status_code}: {document.get('detail', answer.reason_phrase)}"
    if answer.status_code == 401:
        said += " (give --token or FEDMTL_OPERATOR_TOKEN)"
    if answer.is_client_error:
        raise RequestRefused(f"the server refused: {said}")
    raise ServerUnreachable(f"{address} could not answer: {said}")


def _explained(error: httpx.TransportError | ssl.SSLError) -> str:
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{text}; --ca FILE names the authority to trust, and --url has to use a name in the certificate"
    return text


def _in_words(document: dict[str, Any]) -> str:
    clients = document.get("clients", [])
    return "\n".join(
        (
            f"run {document['run_id']}: {document.get('state')}, {document.get('phase')}",
            f"version {document.get('model_version')} of {document.get('target_rounds')}",
            f"{len(clients)} clients connected{': ' if clients else ''}{', '.join(clients)}",
        )
    )
