"""Values of frozen slots on this client's disk, so that a server sends them once and not at every start.

A value is kept by the name of its payload (`common.value_key`), under the run that it came with: checksums are made
against accidents, so what one run's server sent never stands in for what another's means. Every client of a run that
shares a state folder finds it, whatever its id. Everything here blocks: call it off the event loop, one call at a time.

Layout::

    <state folder>/.frozen/<run id>/<checksum, 16 hex digits>-<bytes>      the payload and nothing else

Files appear whole, by rename, under unique temporary names, so processes do not get in each other's way. There is no
fsync: what a crash of the machine leaves behind is compared with its checksum before it is used. A disk that is full
or can't be written costs this saving and nothing else.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from client.kept_update import folder_name
from common.tensors import payload_checksum
from common.value_key import MAX_HELD, ValueKey

log = logging.getLogger("fedmtl.client")
#: Bytes that all runs together may take on a client's disk unless it is told otherwise.
DEFAULT_LIMIT_BYTES: Final = 4_000_000_000
#: No client of this name can be: a folder of kept updates does not begin with a dot.
FOLDER: Final = ".frozen"
_PARTIAL: Final = ".partial"
#: Seconds after which a file under a temporary name belongs to a process that is dead.
_ABANDONED_S: Final = 3600.0
_NAME: Final = re.compile(r"([0-9a-f]{16})-(\d{1,16})")


@dataclass(frozen=True, slots=True)
class _File:
    """A file in the folder, as it was when it was looked at."""

    path: Path
    nbytes: int
    used: float
    key: ValueKey | None


class FrozenValues:
    """What one process may read and write of the folder.

    Args:
        state_dir: the state folder; made when something is kept.
        limit_bytes: most bytes of all runs together; 0 keeps nothing. Several processes that write at the same instant
            may exceed it by what they write.
    """

    def __init__(self, state_dir: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._folder = state_dir / FOLDER
        self._limit = limit_bytes
        #: Of the newest work: what is on disk or found no place. Not looked at again, and not removed for other values.
        self._current: frozenset[ValueKey] = frozenset()
        self._current_run = ""
        #: What turned out to be of no use, and perhaps could not be removed.
        self._spoilt: set[ValueKey] = set()
        self._complained = False

    def listed(self, run_id: str) -> tuple[ValueKey, ...]:
        """What is there for a run, the last used first; not more than a list may hold.

        Nothing is read: a file that turns out to be of no use later is not listed again.
        """
        try:
            found = sorted(self._files(self._folder / folder_name(run_id)), key=lambda file: (-file.used, file.path))
        except OSError as error:
            self._complain("read", error)
            return ()
        whole: list[ValueKey] = []
        for file in found:
            if file.key is None or file.key in self._spoilt:
                continue
            if file.key.nbytes == file.nbytes:
                whole.append(file.key)
            else:
                self._spoil(file.path, file.key, "it is torn")
        return tuple(whole[:MAX_HELD])

    def read(self, run_id: str, wanted: Iterable[ValueKey]) -> dict[ValueKey, memoryview]:
        """The payloads of these names as far as they are there, each compared with its checksum.

        A file that is torn or altered is logged, removed, and from then on not listed.
        """
        found: dict[ValueKey, memoryview] = {}
        for key in dict.fromkeys(wanted):
            path = self._path(run_id, key)
            try:
                payload = _payload(path, key)
            except OSError as error:
                self._spoil(path, key, error.strerror or str(error))
            except ValueError as error:
                self._spoil(path, key, str(error))
            else:
                found[key] = payload
                self._touch(path)
        return found

    def keep(self, run_id: str, values: Mapping[ValueKey, memoryview]) -> None:
        """Write the frozen values of a work that are not there yet, and remove others, the longest unused first."""
        wanted = frozenset(key for key in values if key.nbytes)
        known = self._current if run_id == self._current_run else frozenset()
        if not self._limit or wanted == known:
            return
        self._current, self._current_run = wanted & known, run_id
        paths = {key: self._path(run_id, key) for key in values if key in wanted}
        protected = frozenset(paths.values())
        try:
            for key, path in paths.items():
                if key not in self._current:
                    self._add(path, key, values[key], protected)
                    self._current |= {key}
        except OSError as error:
            self._complain("write", error)

    def forget_run(self, run_id: str) -> None:
        """Remove everything of a run that is over."""
        self._current = frozenset()
        try:
            shutil.rmtree(self._folder / folder_name(run_id))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._complain("tidy up", error)

    # --- one file

    def _add(self, path: Path, key: ValueKey, payload: memoryview, wanted: Container[Path]) -> None:
        if key not in self._spoilt and path.is_file():
            self._touch(path)
            return
        if not self._make_room(key.nbytes, wanted):
            log.info("a frozen value of %d bytes has no place within the limit of %d", key.nbytes, self._limit)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                done = 0
                while done < payload.nbytes:
                    done += file.write(payload[done:])
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        self._spoilt.discard(key)

    def _make_room(self, nbytes: int, wanted: Container[Path]) -> bool:
        """Remove what is longest unused until so many bytes fit; False when they can't."""
        files = [file for folder in _folders(self._folder) for file in self._files(folder)]
        total = sum(file.nbytes for file in files)
        for file in sorted(files, key=lambda file: (file.used, file.path)):
            dead = file.key is None and time.time() - file.used > _ABANDONED_S
            if dead or (total + nbytes > self._limit and file.key is not None and file.path not in wanted):
                file.path.unlink(missing_ok=True)
                total -= file.nbytes
        return total + nbytes <= self._limit

    def _files(self, folder: Path) -> Iterator[_File]:
        """The files of one run that are values, or will be."""
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            name = _NAME.fullmatch(path.name)
            if name is None and not path.name.endswith(_PARTIAL):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process was faster
            key = ValueKey(int(name[1], 16), int(name[2])) if name else None
            yield _File(path, status.st_size, status.st_mtime, key)

    def _path(self, run_id: str, key: ValueKey) -> Path:
        return self._folder / folder_name(run_id) / f"{key.checksum:016x}-{key.nbytes}"

    def _touch(self, path: Path) -> None:
        """It was used just now; a disk that can't be written does not know."""
        try:
            os.utime(path)
        except OSError as error:
            log.debug("%s: %s", path, error)

    def _spoil(self, path: Path, key: ValueKey, why: str) -> None:
        log.warning("a frozen value is of no use on disk, the server sends it again: %s: %s", path, why)
        self._spoilt.add(key)
        self._current -= {key}
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain("tidy up", error)

    def _complain(self, what: str, error: OSError) -> None:
        """Say once what is wrong with the disk: nothing depends on it."""
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        log.log(
            level,
            "could not %s %s (%s): frozen values that are not there are received again at each start. "
            "Make room, or choose another --state-dir.",
            *(what, self._folder, error.strerror or error),
        )


def _payload(path: Path, key: ValueKey) -> memoryview:
    """The content of a file.

    Raises:
        OSError: it can't be read.
        ValueError: it is not what its name says.
    """
    with path.open("rb", buffering=0) as file:
        # Before memory is taken for it: the size comes from the server.
        if (size := os.fstat(file.fileno()).st_size) != key.nbytes:
            raise ValueError(f"it has {size} bytes")
        payload = np.empty(key.nbytes, np.uint8).data
        done = 0
        while done < key.nbytes:
            got = file.readinto(payload[done:])
            if not got:
                raise ValueError("it ends early")
            done += got
    if payload_checksum((payload,)) != key.checksum:
        raise ValueError("it does not have its checksum")
    return payload


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
