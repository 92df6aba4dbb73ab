"""Build a run from its configuration, listen, and see it through to the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Final

import uvicorn
from websockets.exceptions import InvalidState

from common.config_file import read_yaml
from common.errors import EXIT_OK, EXIT_RUN_FAILED, ConfigError
from common.event_loop import loop_factory
from common.families import build_family, family_from_description
from common.families.base import Family
from common.families.saved import read_family, write_family
from common.plan_diff import describe
from common.seeds import derive_seed
from common.tasks import TaskSpec
from server.app import create_app
from server.cohort import sample_cohort
from server.config import Config, LoadedConfig, resolve_config
from server.coordinator import Coordinator, Rules
from server.federation import Federation
from server.gate import Gate
from server.history import History
from server.http_protocol import HttpProtocol
from server.listener import Listener
from server.model_state import ModelState
from server.open_files import raise_file_limit
from server.round import Quorum
from server.run_directory import RunDirectory
from server.strategy import initial_plan
from server.web_socket import WebSocketProtocol

log = logging.getLogger("fedmtl.server")
#: Connections that the system keeps until they are accepted.
BACKLOG: Final = 1024


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
    listener = _listen(config)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        directory = RunDirectory(run_dir or config.run.dir or Path("runs") / run_id, resume=resume)
        stack.callback(directory.close)
        family = _family_of(loaded, directory, resume=resume)
        history = History(directory.database)
        stack.callback(history.close)
        model, run_id = _model_of(config, family, directory, history, run_id, resume=resume)
        log.info("model\n%s", family.summary().table())
        log.info("sharing plan\n%s", describe(model.plan))
        for name, spec in loaded.specs.items():
            log.info("task %s: %s, rows from %s", name, spec.kind, spec.source)
        directory.write_config(resolved(loaded))
        if not resume:
            write_family(family.describe(), family.assets(), directory.family)
        run = partial(_run, config, loaded.specs, family, model, directory, history, run_id, listener)
        # What start-up made (torch, transformers: hundreds of thousands of objects) stays to the end. Looking through
        # all of it in every full collection took a large part of the server's busy time.
        gc.collect()
        gc.freeze()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(run())


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


def _family_of(loaded: LoadedConfig, directory: RunDirectory, *, resume: bool) -> Family:
    """The model family; of a resumed run as it was kept, without the encoder's original files."""
    if not resume:
        return build_family(loaded.config.model, loaded.specs, base_dir=loaded.base_dir)
    require_same_run(loaded, directory.path / "config.yaml")
    description, assets = read_family(directory.family)
    return family_from_description(description, assets, loaded.specs)


def _model_of(
    config: Config, family: Family, directory: RunDirectory, history: History, run_id: str, *, resume: bool
) -> tuple[ModelState, str]:
    """The version to start from and the run's id."""
    if not resume:
        plan = initial_plan(config.federation.mode, family.blueprint())
        history.set("run_id", run_id)
        return ModelState.initial(plan, family.initial_values(config.run.seed)), run_id
    version = history.last_commit()
    if version is None:
        raise ConfigError(f"{directory.path}: the run was never committed, so there is nothing to resume")
    log.info("resuming from version %d", version)
    return directory.load(version), str(history.get("run_id"))


def resolved(loaded: LoadedConfig) -> dict[str, Any]:
    """The configuration as plain data that loads again."""
    resolved = loaded.config.model_dump(mode="json")
    # Without the name, which is the key: the file is a configuration that loads again, for --resume and export.
    resolved["tasks"] = {name: spec.model_dump(mode="json", exclude={"name"}) for name, spec in loaded.specs.items()}
    return resolved


def require_same_run(loaded: LoadedConfig, kept: Path) -> None:
    """Refuse to resume with a configuration that makes another run of it: what would be ignored, or mix two runs.

    Args:
        loaded: the configuration to go on with.
        kept: the run directory's config.yaml.

    Raises:
        ConfigError: naming the keys that differ.
    """
    before, now = resolved(resolve_config(read_yaml(kept), str(kept), kept.parent)), resolved(loaded)
    fixed = (("model",), ("tasks",), ("federation", "mode"), ("run", "seed"))
    differ = [".".join(path) for path in fixed if reduce(getitem, path, before) != reduce(getitem, path, now)]
    if differ:
        raise ConfigError(
            f"{loaded.source}: {', '.join(differ)}: not what the run in {kept.parent} was begun with, and no run can "
            "change it on the way; leave --config out to go on with the run's own configuration, or start a new run"
        )


def _decisions(config: Config, specs: Mapping[str, TaskSpec], version: int) -> Coordinator:
    rules = config.federation

    def sample(connected: frozenset[str], round_id: int) -> frozenset[str]:
        return sample_cohort(
            connected,
            seed=config.run.seed,
            round_id=round_id,
            fraction=rules.cohort.fraction,
            count=rules.cohort.count,
        )

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
            evaluate=rules.evaluate,
            evaluate_every=rules.evaluate_every,
        ),
        sample,
        version,
    )


async def _run(
    config: Config,
    specs: Mapping[str, TaskSpec],
    family: Family,
    model: ModelState,
    directory: RunDirectory,
    history: History,
    run_id: str,
    listener: socket.socket,
) -> int:
    decisions = _decisions(config, specs, model.version)
    federation = Federation(config, specs, family, model, directory, history, run_id, decisions)
    await federation.begin_run()
    gate = Gate(config.server.limits)
    web = _Web(_web_config(config, federation), gate, listener)
    # Asked while the socket is open: it is closed with the server.
    host, port = listener.getsockname()[:2]
    serving = asyncio.create_task(web.serve())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, federation.stop, f"received {number.name}")
    await web.listening(serving)
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"ready url=http://{shown}:{port} run_dir={directory.path}\n")
    sys.stdout.flush()
    outcome = await federation.run()
    await federation.drained(config.server.limits.silence_s)
    web.should_exit = True
    # uvicorn says goodbye to every connection, and fails on one whose peer is half way through closing it.
    with contextlib.suppress(InvalidState):
        await serving
    # After the last connection: that a client left is written down too.
    await federation.close()
    return EXIT_OK if outcome in ("finished", "stopped") else EXIT_RUN_FAILED


def _web_config(config: Config, federation: Federation) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(federation),
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
    )
