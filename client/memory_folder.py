"""A client's memory on its disk: one file per round, of one client in one run.

Layout, beside the kept update of the same run::

    <state folder>/<client id>/<run id>/memory/round-00007.safetensors

A file holds its tensors once each, in the safetensors format. Its one metadata entry is JSON: whose memory it is,
which tensor goes by which names, the plain numbers, a checksum per tensor and a digest of all that. It is on the device
before it has its name, so whatever has a name is whole, unless somebody or the disk has altered it since. Everything
here blocks: call it off the event loop.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from client.memory import Memory, Remembered
from common.durable import DURABLE, Disk
from common.errors import ConfigError
from common.failpoints import failpoint
from common.torch_tensors import encode

log = logging.getLogger("fedmtl.client")
METADATA_KEY: Final = "fedmtl"
FORMAT: Final = 1
_NAME: Final = re.compile(r"round-(\d{5,})\.safetensors")
_PARTIAL: Final = ".partial"


class MemoryFolder:
    """The files of one client's memory in one run.

    Args:
        path: the folder; made when something is written.
        run_id: the run.
        client_id: the client.
        disk: how carefully to write.
    """

    def __init__(self, path: Path, run_id: str, client_id: str, disk: Disk = DURABLE) -> None:
        self._path = path
        self._owner = {"run_id": run_id, "client_id": client_id}
        self._disk = disk

    def load(self) -> dict[int, Remembered]:
        """Every round that is there, each compared with its checksums; what a process that died was writing is removed.

        Raises:
            ConfigError: a file is damaged, or not of this client and run. Training from an older memory instead would
                give another model and tell nobody, so a person decides.
        """
        if not self._path.is_dir():
            return {}
        found: dict[int, Remembered] = {}
        for path in sorted(self._path.iterdir()):
            if path.name.endswith(_PARTIAL):
                path.unlink(missing_ok=True)
            elif name := _NAME.fullmatch(path.name):
                found[int(name[1])] = self._read(path, int(name[1]))
        return found

    def write(self, number: int, remembered: Remembered) -> bool:
        """Write what is remembered after a round so that it survives a crash of the machine; replaces an earlier file.

        Returns:
            False when the disk does not take it, which is logged.
        """
        path = self._path / f"round-{number:05d}.safetensors"
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            if not self._path.is_dir():
                self._make_folder()
            about, tensors = _content({**self._owner, "round": number}, remembered)
            save_file(tensors, partial, metadata={METADATA_KEY: about})
            failpoint("client.remembering")
            self._disk.sync_file(partial)
            partial.replace(path)
            self._disk.sync_folder(self._path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            log.warning(
                "round %d: what this client remembers of it could not be kept in %s (%s); it is in memory only, so a "
                "client that dies trains this round again. Make room, or choose another --state-dir.",
                *(number, self._path, error),
            )
            return False
        failpoint("client.remembered")
        return True

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove rounds that are not needed any more."""
        for number in numbers:
            try:
                (self._path / f"round-{number:05d}.safetensors").unlink(missing_ok=True)
            except OSError as error:
                log.warning("the memory of round %d could not be removed from %s: %s", number, self._path, error)

    def _make_folder(self) -> None:
        missing = [folder for folder in (self._path, *self._path.parents) if not folder.exists()]
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in missing:
            self._disk.sync_folder(folder.parent)

    def _read(self, path: Path, number: int) -> Remembered:
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[METADATA_KEY])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
            _require_whole(about, tensors, {"format": FORMAT, **self._owner, "round": number})
            memory = Memory({name: tensors[key] for name, key in about["names"].items()}, dict(about["numbers"]))
            return Remembered(memory, int(about["start"]))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ConfigError(
                f"{path}, which holds what this client remembers after round {number}, is damaged or not its own "
                f"({error}). Without it the client would train from another state and nobody would know. To accept "
                "that, remove the file: the client goes on from the round before, or from the server's first values."
            ) from error


def memory_folder(run_folder: Path) -> Path:
    """Where the memory of a run lies, in the folder of what a client keeps for the run."""
    return run_folder / "memory"


def forget_all_but_memory(run_folder: Path) -> None:
    """Remove what a client keeps for a run, but not its memory: the run may go on another day.

    Raises:
        OSError: something can't be removed.
    """
    if not memory_folder(run_folder).is_dir():
        shutil.rmtree(run_folder)
        return
    for path in run_folder.iterdir():
        if path.is_file():
            path.unlink(missing_ok=True)


def _content(owner: Mapping[str, Any], remembered: Remembered) -> tuple[str, dict[str, Tensor]]:
    """The metadata and tensors of a file; a tensor that goes by several names is there once."""
    keys: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for name, tensor in remembered.memory.tensors.items():
        key = keys.setdefault(id(tensor), str(len(keys)))
        tensors[key], names[name] = tensor.contiguous(), key
    about = {
        "format": FORMAT,
        **owner,
        "start": remembered.start,
        "names": names,
        "numbers": dict(remembered.memory.numbers),
        "checksums": {key: _checksum(key, tensor) for key, tensor in tensors.items()},
    }
    return json.dumps({**about, "digest": _digest(about)}, sort_keys=True), tensors


def _require_whole(about: Mapping[str, Any], tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    """Raises ValueError where a tensor or the metadata is not what was written, or is of something else."""
    if about["digest"] != _digest({key: value for key, value in about.items() if key != "digest"}):
        raise ValueError("its metadata does not have its digest")
    if {key: _checksum(key, tensor) for key, tensor in tensors.items()} != about["checksums"]:
        raise ValueError("a tensor does not have its checksum")
    if (found := {key: about[key] for key in expected}) != expected:
        raise ValueError(f"it is of {found}")


def _checksum(key: str, tensor: Tensor) -> int:
    return encode(key, tensor).header.checksum


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
