"""The finished update on this client's disk, from before it is sent until the server has it.

A client that dies after its training and is started again finds the update here and sends it, instead of training
once more. Everything here blocks: call it off the event loop, one call at a time.

Layout, for one update per client and run::

    <state folder>/<client id>/.lock                                  held by the process that tidies up
    <state folder>/<client id>/<run id>/round-00007-<digest>.update   `common.update_file`
    <state folder>/<client id>/<run id>/memory/                       `client.memory_folder`

The digest is that of all that decides the bits of the update (`Assignment`), so an update is found for the same work
only. Files are written under unique temporary names, so two processes of one id do not mix theirs up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.memory_folder import forget_all_but_memory
from client.workload import TrainedUpdate
from common.durable import DURABLE, Disk
from common.errors import ConfigError
from common.failpoints import failpoint
from common.messages import DataReport, UpdateHeader, Welcome, Work
from common.update_file import UpdateFile, UpdateFileError, UpdateFileWriter

log = logging.getLogger("fedmtl.client")
_SUFFIX: Final = ".update"
_PARTIAL: Final = ".partial"
_ROUND: Final = re.compile(r"round-(\d{5,})-[0-9a-f]{32}\.update")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def default_state_dir() -> Path:
    """``$XDG_STATE_HOME/fedmtl``, or ``~/.local/state/fedmtl``.

    Raises:
        ConfigError: this user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification: a relative path there is to be ignored.
    if os.path.isabs(given):
        return Path(given) / "fedmtl"
    try:
        return Path.home() / ".local" / "state" / "fedmtl"
    except RuntimeError as error:
        raise ConfigError(f"no folder for finished updates: {error} Choose one with --state-dir PATH.") from error


def circumstances(welcome: Welcome, loaded: Mapping[str, DataReport], sync: str) -> str:
    """Digest of what decides an update beside the work itself: client, seed, tasks, their data, model family, sync."""
    return _digest(
        [
            welcome.client_id,
            welcome.seed,
            sorted(welcome.tasks),
            welcome.specs,
            welcome.family,
            {task: report.model_dump() for task, report in loaded.items()},
            sync,
        ]
    )


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an update answers; two equal ones ask for the same bits.

    Attributes:
        run_id: from the work.
        round: from the work.
        version: from the work.
        plan: from the work.
        digest: 32 hex digits of all of the work that training looks at, the received values and the
            circumstances included.
    """

    run_id: str
    round: int
    version: int
    plan: str
    digest: str

    @classmethod
    def of(cls, work: Work, circumstances: str) -> Assignment:
        """The assignment that a `Work` stands for under these `circumstances`."""
        asked = [
            circumstances,
            work.run_id,
            work.round,
            work.version,
            work.target_rounds,
            work.plan,
            work.slice,
            work.training,
            [[tensor.slot, tensor.checksum] for tensor in work.tensors],
        ]
        return cls(work.run_id, work.round, work.version, work.plan, _digest(asked))

    def require_answer(self, kept: UpdateFile) -> None:
        """Raises UpdateFileError where a file holds an update for something else."""
        header = kept.header
        said = (header.run_id, header.round, header.version, header.plan)
        if said != (self.run_id, self.round, self.version, self.plan):
            raise UpdateFileError(f"{kept.path} is of round {header.round} of {header.run_id!r}")


class KeptUpdates:
    """The updates that one client keeps on disk.

    Args:
        state_dir: the state folder; made when it is missing.
        client_id: whose updates.
        disk: how carefully to write.

    Raises:
        ConfigError: the folder can't be made.
    """

    def __init__(self, state_dir: Path, client_id: str, disk: Disk = DURABLE) -> None:
        self._folder = state_dir / folder_name(client_id)
        self._disk = disk
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the state folder {self._folder} can't be made ({error.strerror}): a finished update is kept there "
                "until the server has it. Choose another folder with --state-dir PATH or FEDMTL_STATE_DIR."
            ) from error
        self._lock = _try_lock(self._folder / ".lock")
        self._tidied: str | None = None

    def close(self) -> None:
        """Let another process of this id tidy up; harmless twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def find(self, assignment: Assignment) -> TrainedUpdate | None:
        """The update kept for this assignment; one that is torn or altered is logged and removed."""
        path = self._path(assignment)
        try:
            if not path.exists():
                return None
            kept = UpdateFile.load(path)
            assignment.require_answer(kept)
            tensors = kept.tensors()
        except (OSError, UpdateFileError) as error:
            log.warning("a kept update is of no use, round %d is trained again: %s", assignment.round, error)
            _remove(path)
            return None
        return TrainedUpdate(dict(kept.header.tasks), tensors)

    def keep(self, assignment: Assignment, header: UpdateHeader, update: TrainedUpdate) -> bool:
        """Write an update so that it survives a crash of the machine.

        Returns:
            False when the disk does not take it, which is logged: the update is then in memory only.
        """
        try:
            self._write(self._path(assignment), header, update)
            failpoint("client.kept")
        except OSError as error:
            log.warning(
                "round %d: the finished update could not be kept in %s (%s); it is in memory only, so a client that "
                "dies before the server has it trains this round again. Make room, or choose another --state-dir.",
                *(assignment.round, self._folder, error.strerror or error),
            )
            return False
        return True

    def _write(self, path: Path, header: UpdateHeader, update: TrainedUpdate) -> None:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._disk.sync_folder(self._folder)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        writer = UpdateFileWriter(partial, header, self._disk)
        try:
            for number, tensor in enumerate(update.tensors):
                if number == len(update.tensors) // 2:
                    failpoint("client.keeping")
                offset = 0
                for part in tensor.parts:
                    writer.write(number, offset, part)
                    offset += part.nbytes
            writer.commit(path)
        finally:
            writer.abandon()

    def forget(self, assignment: Assignment) -> None:
        """Remove the update kept for this assignment, if there is one."""
        _remove(self._path(assignment))
        failpoint("client.forgotten")

    def prune(self, run_id: str, round_number: int, wanted: Assignment | None) -> None:
        """Remove what the work at hand makes useless: updates of older rounds, other work and other runs.

        Other runs, and what a process that died was writing, are left alone while another process of this id holds
        the lock.

        Args:
            run_id: the run of the work.
            round_number: its round.
            wanted: what it asks for; None when it asks for no update.
        """
        folder = self._folder / folder_name(run_id)
        name = None if wanted is None else self._path(wanted).name
        try:
            for path in list(folder.iterdir()) if folder.is_dir() else []:
                found = _ROUND.fullmatch(path.name)
                if found and int(found[1]) <= round_number and path.name != name:
                    _remove(path)
            if self._tidied != run_id and self._lock is not None:
                self._tidied = run_id
                self._tidy(folder)
        except OSError as error:
            log.warning("%s could not be tidied up: %s", self._folder, error)

    def forget_run(self, run_id: str) -> None:
        """Remove everything kept for a run that is over."""
        folder = self._folder / folder_name(run_id)
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
        except OSError as error:
            log.warning("%s could not be removed: %s", folder, error)

    def _tidy(self, current: Path) -> None:
        for path in self._folder.iterdir():
            if path.is_dir() and path != current:
                forget_all_but_memory(path)
        for path in current.glob(f"*{_PARTIAL}"):
            _remove(path)

    def _path(self, assignment: Assignment) -> Path:
        name = f"round-{assignment.round:05d}-{assignment.digest}{_SUFFIX}"
        return self._folder / folder_name(assignment.run_id) / name


def run_folder(state_dir: Path, client_id: str, run_id: str) -> Path:
    """Where a client keeps what it keeps for one run."""
    return state_dir / folder_name(client_id) / folder_name(run_id)


def folder_name(name: str) -> str:
    """A name as a folder's name; one that comes off the wire must not lead out of the state folder."""
    return name if _PLAIN.fullmatch(name) else "sha256-" + hashlib.sha256(name.encode()).hexdigest()[:32]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be removed: %s", path, error)


def _try_lock(path: Path) -> int | None:
    """An open file with an exclusive lock that ends with this process; None where another holds it, or none can be."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
