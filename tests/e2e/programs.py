"""The server and client programs as processes of their own, started, watched and ended by a test.

Importing torch costs seconds, so most processes are forked from one that has imported everything already
(`multiprocessing`'s fork server). Each is a process like any other: its own memory, signals, sockets and exit
code. `Programs(as_commands=True)` starts ``python -m server`` from nothing instead, as a user does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol
from unittest.mock import patch

import yaml

from common import failpoints

ROOT: Final = Path(__file__).resolve().parents[2]
#: Generous, as the machine may be busy; a test that passes does not wait for it.
PATIENCE_S: Final = 90.0
#: Idle threads sleep, and one thread per process: several of them share the machine's cores.
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
_PRELOADED: Final = (
    "server.__main__",
    "server.serve",
    "server.export_run",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.protocols.http.httptools_impl",
    "client.__main__",
    "client.session",
    "client.local_workload",
    "transformers.models.bert.modeling_bert",
    "tests.e2e.programs",
)


#: An exit code can be read once. Starting a process looks for the codes of others, also in another thread.
_CHILDREN: Final = threading.Lock()


class _Process(Protocol):
    """What a forked process and one started as a command have in common."""

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None: ...


def start_fork_server() -> None:
    """Start the process from which programs are forked, unless it runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    with contextlib.chdir(ROOT), patch.dict(os.environ, ENVIRONMENT):
        multiprocessing.forkserver.ensure_running()


def _become(
    module: str, arguments: Sequence[str], stdout: Connection, log: str, environment: Mapping[str, str]
) -> None:
    """Be ``python -m MODULE ARGUMENTS`` in a forked process, which has the fork server's environment and this."""
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    os.environ.update(environment)
    # Armed from the environment when the module was imported, which the fork server did long ago.
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    importlib.import_module(f"{module}.__main__").app(list(arguments), prog_name=f"python -m {module}")


class Program:
    """One running program; its standard error is a file, its standard output a pipe.

    Args:
        module: ``server`` or ``client``.
        arguments: of its command line.
        log: where its standard error goes.
        as_command: start it from nothing, not forked.
        environment: environment variables beside those of this process (or of the fork server).
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, *, as_command: bool, environment: Mapping[str, str]
    ) -> None:
        self.name = log.stem
        self._log = log
        self._said = b""
        self._reader, writer = multiprocessing.Pipe(duplex=False)
        self._process: _Process
        self._command: subprocess.Popen[bytes] | None = None
        if as_command:
            with log.open("wb") as errors:
                self._process = self._command = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=ROOT,
                    env={**os.environ, **ENVIRONMENT, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=writer.fileno(),
                    stderr=errors,
                )
        else:
            context = multiprocessing.get_context("forkserver")
            told = (module, list(arguments), writer, str(log), dict(environment))
            self._fork = context.Process(target=_become, args=told, daemon=True)
            with _CHILDREN:
                self._fork.start()
            self._process = self._fork
        writer.close()

    def line(self, patience_s: float = PATIENCE_S) -> str:
        """The next line of standard output; empty when the program closed it without one."""
        until = time.monotonic() + patience_s
        while b"\n" not in self._said:
            if not self._reader.poll(max(0.0, until - time.monotonic())):
                raise AssertionError(f"{self.name} printed no line in {patience_s:g} s:\n{self.log()}")
            piece = os.read(self._reader.fileno(), 65536)
            if not piece:
                break
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """The exit code; negative for a signal, as `subprocess` has it."""
        if self._command is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._command.wait(patience_s)
            code = self._command.returncode
        else:
            multiprocessing.connection.wait([self._fork.sentinel], patience_s)
            with _CHILDREN:
                code = self._fork.exitcode
        assert code is not None, f"{self.name} did not end in {patience_s:g} s:\n{self.log()}"
        return code

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self._command is not None:
            return self._command.poll() is None
        with _CHILDREN:
            return self._fork.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def end(self) -> None:
        """Kill it if it still runs, and let its pipe go."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self._process.kill()
        self.wait()
        self._reader.close()
        if self._command is None:
            self._fork.close()


class Server(Program):
    """A server that has printed its ready line."""

    url: str = ""
    run_dir: Path = Path()

    def await_ready(self) -> None:
        """Wait until it listens; its address and run directory are known from then on."""
        assert self.came_up(), f"no ready line:\n{self.log()}"

    def came_up(self) -> bool:
        """Wait until it listens, or has ended without; says which."""
        words = self.line().split()
        if words:
            assert words[0] == "ready", words
            fields = dict(word.split("=", 1) for word in words[1:])
            self.url, self.run_dir = fields["url"], Path(fields["run_dir"])
        return bool(words)

    @property
    def address(self) -> str:
        """Where clients connect."""
        return "ws" + self.url.removeprefix("http") + "/ws"  # wss where it is https

    def summary(self) -> dict[str, Any]:
        """The run directory's summary.json."""
        content: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return content


class Programs:
    """Everything that one test started; `end` leaves nothing behind.

    Each takes a `failpoint` to arm, as ``NAME=ACTION[@N]`` (`common.failpoints`), and further environment variables.

    Args:
        folder: for logs, configurations, run directories and what clients keep.
        as_commands: start each program as ``python -m ...``, not forked.
    """

    def __init__(self, folder: Path, *, as_commands: bool = False) -> None:
        self.folder = folder
        self.as_commands = as_commands
        self._started: list[Program] = []
        if not as_commands:
            # Python starts one of its own otherwise, without the preloaded modules and the environment.
            start_fork_server()

    def command(
        self, module: str, *arguments: str, failpoint: str = "", environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start ``python -m MODULE ARGUMENTS``."""
        program = Program(
            module,
            arguments,
            self._log(module),
            as_command=self.as_commands,
            environment=self._environment(failpoint, environment),
        )
        self._started.append(program)
        return program

    def server(
        self,
        config: Mapping[str, Any] | None,
        *arguments: str,
        run_dir: Path | None = None,
        ready: bool = True,
        failpoint: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        """Start a server on any free port and wait until it is ready.

        Args:
            config: what the configuration file holds; None leaves ``--config`` out.
            arguments: further ones.
            run_dir: default ``run`` in the test's folder.
            ready: False returns at once.
            failpoint: armed in it.
            environment: further environment variables.
        """
        words = [*arguments, "--run-dir", str(run_dir or self.folder / "run")]
        if config is not None:
            words += ["--config", str(self.write_config(config))]
        server = Server(
            "server",
            words,
            self._log("server"),
            as_command=self.as_commands,
            environment=self._environment(failpoint, environment),
        )
        self._started.append(server)
        if ready:
            server.await_ready()
        return server

    def client(
        self,
        server: Server,
        client_id: str,
        *arguments: str,
        failpoint: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """Start a client of a server."""
        words = ("--client-id", client_id, "--server", server.address, *arguments)
        return self.command("client", *words, failpoint=failpoint, environment=environment)

    @property
    def state_dir(self) -> Path:
        """What the clients keep on disk."""
        return self.folder / "state"

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """Write a configuration file; each call makes another."""
        path = self.folder / f"config-{len(self._started)}.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        return path

    def end(self) -> None:
        """End what still runs, the newest first; shows every log, which pytest prints when the test failed."""
        for program in reversed(self._started):
            program.end()
        for program in self._started:
            sys.stdout.write(f"--- {program.name}\n{program.log()}\n")

    def _environment(self, failpoint: str, further: Mapping[str, str] | None) -> dict[str, str]:
        environment = {"FEDMTL_STATE_DIR": str(self.state_dir), **(further or {})}
        return {**environment, failpoints.VARIABLE: failpoint} if failpoint else environment

    def _log(self, module: str) -> Path:
        return self.folder / f"{len(self._started):02d}-{module}.log"
