"""Build a run from its configuration, listen, and see it through to the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sqlite3
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import uvicorn
from safetensors import SafetensorError
from websockets.exceptions import InvalidState

from common import failpoints
from common.durable import Disk
from common.errors import EXIT_OK, EXIT_RUN_FAILED, ConfigError
from common.event_loop import loop_factory
from common.failpoints import failpoint
from common.log_context import set_log_context
from common.plan_diff import describe
from common.seeds import derive_seed
from common.tasks import TaskSpec
from server.app import create_app
from server.authentication import Authenticator, build_authenticator
from server.cohort import Cohort, sample_cohort
from server.config import Config, LoadedConfig
from server.coordinator import Coordinator
from server.federation import Federation
from server.gate import Gate
from server.http_protocol import HttpProtocol
from server.listener import Listener
from server.open_files import raise_file_limit
from server.round import Quorum
from server.rules import Rules
from server.run_directory import RunDirectory
from server.start import Start, begin, go_on
from server.tls import server_context
from server.web_socket import WebSocketProtocol

log = logging.getLogger("fedmtl.server")
#: Connections that the system keeps until they are accepted.
BACKLOG: Final = 1024
#: Most seconds to wait for clients to hear that the run is over.
FAREWELL_S: Final = 5.0
#: Seconds after a signal at which the process ends, whatever it is in the middle of: what is on disk suffices to go on.
STOP_S: Final = 9.0
#: Seconds between two looks at whether a connected client's token still counts.
REVOCATION_S: Final = 1.0


class _Web(uvicorn.Server):
    """uvicorn without its own signal handling: a signal stops the run first, then the listener."""

    def __init__(self, config: uvicorn.Config, gate: Gate, listening: socket.socket) -> None:
        super().__init__(config)
        self._gate = gate
        self._listening = listening
        self._up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and say so."""
        del sockets
        listener = Listener(
            self._listening,
            self._gate,
            lambda visit: HttpProtocol(visit, self.config, self.server_state),
            self.config.ssl,
        )
        self.servers = [listener]  # type: ignore[list-item]  # closed and waited for as an asyncio.Server
        self.started = True
        self._up.set()

    async def listening(self, serving: asyncio.Task[None]) -> None:
        """Wait until requests are taken; raises what kept `serving` from it."""
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait({up, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(loaded: LoadedConfig, run_dir: Path | None, *, resume: bool) -> int:
    """Run a federation to its end; returns the exit code.

    Raises:
        ConfigError: before anything is started, for whatever the operator has to put right.
    """
    config = loaded.config
    raise_file_limit(config.server.limits, BACKLOG)
    run_id = config.run.name or f"{datetime.now():%Y%m%d-%H%M%S}-{derive_seed(config.run.seed, 'run') % 0xFFFF:04x}"
    if failpoints.armed():
        log.warning("failure points are armed, for a test: %s", failpoints.armed())
    folder = run_dir or config.run.dir or Path("runs") / run_id
    # Who may connect is settled before anybody can.
    authenticator = build_authenticator(config.server, folder, loaded.specs)
    tls = server_context(config.server.tls) if config.server.tls is not None else None
    listener = _listen(config)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        directory = RunDirectory(folder, resume=resume, disk=Disk(config.run.fsync))
        stack.callback(directory.close)
        try:
            # A server that was killed before it had a run to resume has left the configuration to begin it with.
            start = go_on(loaded, directory) if directory.holds_run else begin(loaded, directory, run_id)
        except (OSError, sqlite3.Error, SafetensorError) as error:
            raise ConfigError(f"the run directory {directory.path} can't be written: {error}") from error
        stack.callback(start.history.close)
        set_log_context(run_id=start.run_id)
        log.info("model\n%s", start.family.summary().table())
        log.info("sharing plan\n%s", describe(start.model.plan))
        for name, spec in loaded.specs.items():
            log.info("task %s: %s, rows from %s", name, spec.kind, spec.source)
        # What start-up made (torch, transformers: hundreds of thousands of objects) stays to the end. Looking through
        # all of it in every full collection took a large part of the server's busy time.
        gc.collect()
        gc.freeze()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run(config, loaded.specs, start, directory, listener, authenticator, tls))


def _listen(config: Config) -> socket.socket:
    """Take the port first: a busy one is told at once."""
    address = (config.server.host, config.server.port)
    try:
        family = socket.AF_INET6 if ":" in config.server.host else socket.AF_INET
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address[0]}:{address[1]} ({error.strerror}); "
            "choose another server.port, 0 takes any free one"
        ) from error


def _decisions(config: Config, specs: Mapping[str, TaskSpec], start: Start) -> Coordinator:
    rules = config.federation

    def sample(connected: frozenset[str], round_id: int) -> Cohort:
        cohort = sample_cohort(
            connected,
            seed=config.run.seed,
            round_id=round_id,
            fraction=rules.cohort.fraction,
            count=rules.cohort.count,
            over_selection=rules.cohort.over_selection,
        )
        return Cohort(cohort.clients, rules.buffer.size) if rules.late_updates == "async" else cohort

    return Coordinator(
        Rules(
            target_rounds=config.run.rounds,
            tasks=frozenset(specs),
            min_clients=rules.min_clients,
            min_clients_per_task=rules.min_clients_per_task,
            quorum=Quorum(rules.quorum, rules.quorum_per_task),
            deadline_s=rules.round_deadline_s,
            grace_s=rules.rejoin_grace_s,
            gather_timeout_s=rules.rejoin_timeout_s,
            max_attempts=rules.max_attempts,
            lost_quorum=rules.on_lost_quorum,
            evaluate=rules.evaluate,
            evaluate_every=rules.evaluate_every,
            screen=rules.screening.max_norm_ratio is not None,
            max_staleness=rules.buffer.max_staleness if rules.late_updates == "async" else None,
            quarantine_after=rules.screening.quarantine_after,
            quarantine_rounds=rules.screening.quarantine_rounds,
        ),
        sample,
        start.model.version,
        start.course.outlook(start.model.version, start.model.plan),
    )


async def _run(
    config: Config,
    specs: Mapping[str, TaskSpec],
    start: Start,
    directory: RunDirectory,
    listener: socket.socket,
    authenticator: Authenticator,
    tls: ssl.SSLContext | None,
) -> int:
    decisions = _decisions(config, specs, start)
    federation = Federation(config, specs, start, directory, decisions, authenticator)
    loop = asyncio.get_running_loop()
    gate = Gate(config.server.limits)
    authenticator.on_failure = lambda address: gate.attempts.failed(address, loop.time())
    web = _Web(_web_config(config, federation, gate, tls), gate, listener)
    # Asked while the socket is open: it is closed with the server.
    host, port = listener.getsockname()[:2]
    serving = asyncio.create_task(web.serve())
    measuring = loop.create_task(federation.ledger.measures.loop_lag.measure())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, federation, number)
    # Listening comes first: whoever asks while a run is being restored hears that it is not ready yet.
    await web.listening(serving)
    failpoint("start.listening")
    url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    if not start.finished:
        await federation.restore(url)
    failpoint("start.restored")
    sys.stdout.write(f"ready url={url} run_dir={directory.path}\n")
    sys.stdout.flush()
    revocations = asyncio.create_task(_follow_revocations(federation))
    outcome = await (federation.say_farewell() if start.finished else federation.run())
    revocations.cancel()
    await federation.drained(min(config.server.limits.silence_s, FAREWELL_S))
    web.should_exit = True
    # uvicorn says goodbye to every connection, and fails on one whose peer is half way through closing it.
    with contextlib.suppress(InvalidState):
        await serving
    # After the last connection: that a client left is written down too.
    await federation.close()
    measuring.cancel()
    return EXIT_OK if outcome in ("finished", "stopped") else EXIT_RUN_FAILED


def _stop(federation: Federation, number: signal.Signals) -> None:
    """Stop cleanly, or else in time."""
    federation.stop(f"received {number.name}")
    watchdog = threading.Timer(STOP_S, _end_now)
    watchdog.daemon = True
    watchdog.start()


def _end_now() -> None:
    log.warning("stopping took longer than %g s: ended as a kill would, --resume goes on from there", STOP_S)
    logging.shutdown()
    os._exit(EXIT_OK)


async def _follow_revocations(federation: Federation) -> None:
    while True:
        await asyncio.sleep(REVOCATION_S)
        federation.reception.drop_revoked()


def _web_config(config: Config, federation: Federation, gate: Gate, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(federation, gate),
        # Tensors do not compress, and liveness is the protocol's own matter.
        ws=WebSocketProtocol,
        ws_max_size=config.server.limits.frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=2,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
