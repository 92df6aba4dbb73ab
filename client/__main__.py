"""``python -m client``: take part in a federation with the data of this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from client.tls import client_tls, travels_in_clear
from common.arguments import TasksCommand, task_names
from common.console import LogFormat, set_up_logging
from common.errors import EXIT_OK, ConfigError, FedmtlError
from common.event_loop import loop_factory
from common.log_context import set_log_context

if TYPE_CHECKING:
    from client.session import Session

log = logging.getLogger("fedmtl.client")
#: Characters; `common.messages.Hello.token` takes no more.
MAX_TOKEN: Final = 4096
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Sync(StrEnum):
    """How much of the model a client synchronises."""

    SLICE = "slice"
    FULL = "full"


@app.command(cls=TasksCommand)
def run(
    client_id: Annotated[str, typer.Option(help="This client's name in the run, such as sst2_client.")],
    tasks: Annotated[
        list[str] | None, typer.Option(help="What this client has data for; left out: inferred from --client-id.")
    ] = None,
    server: Annotated[str, typer.Option(help="The federation's address.")] = "ws://127.0.0.1:8771/ws",
    data: Annotated[
        Path | None, typer.Option(help="Folder of this client's data, or one file of training rows.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="FEDMTL_TOKEN", help="Proof of identity, if one is asked.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds the token, so that it shows in no process list.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Verify a wss:// server against these certificates (PEM), not the system's.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="This client's certificate (PEM), where the server asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of --cert (PEM).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    shard: Annotated[str | None, typer.Option(help="I/N: this client's part where N clients share one source.")] = None,
    sync: Annotated[
        Sync, typer.Option(help="slice: the slots of its tasks. full: the whole model, both ways.")
    ] = Sync.SLICE,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: as the server's settings say.")
    ] = None,
    reconnect_for: Annotated[
        float, typer.Option(min=0, help="Seconds to try to come back to a lost server; 0: leave at once.")
    ] = 600.0,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDMTL_STATE_DIR",
            help="Where a finished update is kept until the server has it, what stays on this client from round to "
            "round, and what is frozen until the run is over; "
            "default: $XDG_STATE_HOME/fedmtl or ~/.local/state/fedmtl.",
            show_default=False,
        ),
    ] = None,
    frozen_limit_mb: Annotated[
        float,
        typer.Option(
            min=0, help="Most megabytes (10^6 bytes) of frozen slots in --state-dir, all runs together; 0: none."
        ),
    ] = 4000.0,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            envvar="FEDMTL_CACHE_DIR",
            metavar="PATH",
            help="Where tokenised rows are kept for the next start; off: nowhere. "
            "Default: $XDG_CACHE_HOME/fedmtl or ~/.cache/fedmtl.",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Lines for people, or a JSON object per line.")] = "text",
) -> None:
    """Take part in a federation: receive a slice of the model, train it here, send back what changed."""
    set_up_logging(verbose=verbose, format=log_format)
    set_log_context(client_id=client_id)
    try:
        names = task_names(tasks)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", client_id):
            raise ConfigError(f"--client-id {client_id!r}: 1 to 64 letters, digits, '_', '.', '-'")
        _require_address(server)
        if data is not None and not data.exists():
            raise ConfigError(f"--data {data}: there is no such file or folder")
        # Imported here, as torch takes a second that a mistyped command should not.
        from client.display import Display
        from client.frozen_values import FrozenValues
        from client.kept_update import KeptUpdates, default_state_dir
        from client.local_workload import LocalWorkload
        from client.session import Identity, Session
        from client.token_cache import OFF, default_cache_dir
        from common.data import Shard

        tls = client_tls(server, ca, cert, key)
        token = _token(token, token_file, server)
        state_dir = state_dir or default_state_dir()
        kept = KeptUpdates(state_dir, client_id)
        frozen = FrozenValues(state_dir, int(frozen_limit_mb * 1e6))
        cache = None if cache_dir == OFF else Path(cache_dir) if cache_dir else default_cache_dir()
        part = Shard.parse(shard) if shard else None
        workload = LocalWorkload(data, device, part, sync.value, threads, state_dir, cache)
        display = Display(terminal=None if log_format == "text" else False)
        identity = Identity(server, client_id, names, token, sync.value, reconnect_for, tls=tls)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            code = runner.run(_take_part(Session(identity, workload, display, kept, frozen)))
    except FedmtlError as error:
        log.error("%s", error)  # noqa: TRY400  # a person needs the sentence, not our stack
        code = error.exit_code
    raise typer.Exit(code)


def _require_address(server: str) -> None:
    """Raises ConfigError for what is no WebSocket address."""
    try:
        parts = urlsplit(server)
        if parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0 and not re.search(r"\s", server):
            return
    except ValueError:  # a port that is none
        pass
    raise ConfigError(f"--server {server!r}: expected ws://HOST:PORT/ws or wss://HOST:PORT/ws")


def _token(given: str | None, file: Path | None, server: str) -> str | None:
    """The token, from wherever it comes.

    Raises:
        ConfigError: it is given twice, or the file holds none.
    """
    if given is not None and file is not None:
        raise ConfigError("give either --token (or FEDMTL_TOKEN) or --token-file, not both")
    if file is not None:
        try:
            given = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {file} can't be read: {error}") from error
        if not given:
            raise ConfigError(f"--token-file {file} is empty")
    if given is not None and len(given) > MAX_TOKEN:
        raise ConfigError(f"the token has {len(given)} characters; a token has at most {MAX_TOKEN}")
    if given and travels_in_clear(server):
        log.warning("the token travels to %s in clear, where others on the way can read it: use wss://", server)
    return given


async def _take_part(session: Session) -> int:
    """Run the session until it ends or a signal stops it."""
    work = asyncio.create_task(session.run())
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        finished = await work
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        log.info("stopped")
        return EXIT_OK
    log.info("the run is over after %d rounds: %s", finished.rounds_completed, finished.reason)
    return EXIT_OK


if __name__ == "__main__":
    # Before torch is imported: idle worker threads should sleep, not spin, beside other processes.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if "OMP_WAIT_POLICY" not in os.environ:
        # They spin for some microseconds first: a small model's operations follow each other faster than a thread
        # wakes up. Measured in docs/benchmarks.md, "Local training".
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()
