"""Updates that are accepted and not yet part of a committed version, one file each, never whole in memory.

An update lies in ``round-00007/<client_id>.update`` below the spool folder: 7 is the round in which it counts, which
may come after the one it was trained for. Its format is that of `common.update_file`. While it arrives it has a name
that ends in ``.partial``; `SpoolWriter.commit` makes it durable (fsync, rename, fsync of the folder) before it
returns, and only then may the client be told. All functions here block: call them off the event loop.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.durable import DURABLE, Disk
from common.errors import ProtocolError
from common.failpoints import failpoint
from common.messages import UpdateHeader
from common.tensors import NUMPY_DTYPES, check_rows
from common.torch_tensors import tensor_of
from common.update_file import UpdateFile, UpdateFileError, UpdateFileWriter
from server.aggregation.base import Delta
from server.aggregation.deltas import DenseDelta, RowsDelta
from server.aggregation.scratch import scratch

logger = logging.getLogger(__name__)

_SUFFIX: Final = ".update"
_PARTIAL: Final = ".partial"
_ROUND: Final = re.compile(r"round-(\d{5,})")

#: Folders of rounds whose names are known to be on the device.
_FOLDERS: Final[set[Path]] = set()
_FOLDERS_LOCK: Final = threading.Lock()

#: A spooled update that is torn, altered or not readable.
SpoolError = UpdateFileError


def round_folder(spool: Path, round_number: int) -> Path:
    """Where the updates of one round lie."""
    return spool / f"round-{round_number:05d}"


class SpoolWriter:
    """Takes the payloads of one update as they arrive: a sink for `common.stream.StreamReceiver`.

    Args:
        directory: the spool folder.
        header: the update's header.
        client_id: who sent it, checked before (letters, digits, ``_.-``).
        disk: how carefully to write.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, directory: Path, header: UpdateHeader, client_id: str, disk: Disk = DURABLE) -> None:
        self._directory = directory
        self._header = header
        self._client_id = client_id
        self._disk = disk
        folder = self._folder(header.round)
        # Unique, for a client that lost its connection may send again while its old attempt is being torn down.
        partial = folder / f"{client_id}.{secrets.token_hex(4)}{_PARTIAL}"
        self._writer = UpdateFileWriter(partial, header, disk)

    def write(self, tensor: int, offset: int, data: memoryview) -> None:
        """Store a piece of the payload of header number `tensor`.

        Raises:
            OSError: it can't be written, or the update was abandoned.
        """
        self._writer.write(tensor, offset, data)

    def commit(self, round_number: int | None = None) -> SpooledUpdate:
        """Make the update durable; when this returns it survives a crash of the machine.

        Args:
            round_number: the round in which it counts; None is the one it was trained for. A late update may count
                in a later round.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        try:
            folder = self._folder(self._header.round if round_number is None else round_number)
        except OSError:
            self.abandon()
            raise
        final = folder / f"{self._client_id}{_SUFFIX}"
        self._writer.commit(final, lambda step: failpoint(f"spool.{step}"))
        return SpooledUpdate(final, self._header, self._writer.begin)

    def abandon(self) -> None:
        """Forget what has come; harmless after `commit` or twice."""
        self._writer.abandon()

    def _folder(self, round_number: int) -> Path:
        return _durable_folder(round_folder(self._directory, round_number), self._disk)


def _durable_folder(folder: Path, disk: Disk) -> Path:
    """A round's folder, its name on the device: the first to need it waits for that, and others wait for the first."""
    with _FOLDERS_LOCK:
        # It may have been discarded since, and be made again.
        if folder not in _FOLDERS or not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            disk.sync_folder(folder.parent)
            _FOLDERS.add(folder)
    return folder


class SpooledUpdate(UpdateFile):
    """An accepted update on disk. Between `open` and `close` its deltas can be read, by any thread."""

    def __init__(self, path: Path, header: UpdateHeader, begin: int) -> None:
        super().__init__(path, header, begin)
        self._positions = {tensor.slot: index for index, tensor in enumerate(header.tensors)}

    @property
    def client_id(self) -> str:
        """Who sent it."""
        return self.path.name.removesuffix(_SUFFIX)

    def delta(self, slot_id: str) -> Delta:
        """The delta of one slot, read from the file block by block as it is used.

        Raises:
            KeyError: the update has none.
            SpoolError: the file does not hold what its header says, or is not open.
        """
        index = self._positions[slot_id]
        header, offset = self.header.tensors[index], self.offset_of(index)
        if header.encoding == "raw":
            return DenseDelta(header.shape, lambda first, last: self._elements(header.dtype, offset, first, last))
        indices = np.empty(header.rows or 0, "<u4")
        self.read(offset, indices)
        try:
            check_rows(header, indices)
        except ProtocolError as error:
            raise SpoolError(f"{self.path}: {error}") from error
        values = offset + header.index_bytes
        width = header.row_bytes // NUMPY_DTYPES[header.dtype].itemsize

        def rows(first: int, last: int) -> Tensor:
            return self._elements(header.dtype, values, first * width, last * width).view(last - first, width)

        return RowsDelta(header.shape, torch.from_numpy(indices.astype(np.int64)), rows)

    def _elements(self, dtype: str, offset: int, first: int, last: int) -> Tensor:
        """Elements first..last-1 of the payload at `offset`, in this thread's scratch memory."""
        numpy_dtype = NUMPY_DTYPES[dtype]
        elements = scratch("file", (last - first) * numpy_dtype.itemsize).view(numpy_dtype)
        self.read(offset + first * numpy_dtype.itemsize, elements)
        return tensor_of(elements, dtype)


class Spool:
    """The spool folder as a whole.

    Args:
        directory: made when it is missing.
        disk: how carefully files are removed.
    """

    def __init__(self, directory: Path, disk: Disk = DURABLE) -> None:
        self.directory = directory
        self._disk = disk
        directory.mkdir(parents=True, exist_ok=True)

    def load(self, round_number: int, *, verify: bool = False) -> list[SpooledUpdate]:
        """The updates of a round that survived, by client id; what is torn or altered is logged and removed.

        Call it before updates arrive: what was on its way into any round when the server died is removed too.

        Args:
            round_number: the round in which they count; those of later rounds are refused.
            verify: also read all payloads and compare checksums.
        """
        for partial in self.directory.glob(f"*/*{_PARTIAL}"):
            partial.unlink(missing_ok=True)
        folder = round_folder(self.directory, round_number)
        if not folder.is_dir():
            return []
        found = (_load(path, round_number, verify) for path in folder.glob(f"*{_SUFFIX}"))
        return sorted((update for update in found if update is not None), key=lambda update: update.client_id)

    def drop(self, update: SpooledUpdate) -> None:
        """Remove one update that does not count after all, so that it does not come back after a crash."""
        update.close()
        try:
            update.path.unlink()
        except FileNotFoundError:
            return  # dropped before, or discarded with its round
        self._disk.sync_folder(update.path.parent)

    def move(self, update: SpooledUpdate, round_number: int) -> SpooledUpdate:
        """Let an update count in another round; durable when this returns. Bears being done twice."""
        folder = _durable_folder(round_folder(self.directory, round_number), self._disk)
        target = folder / update.path.name
        if update.path.exists():
            update.path.replace(target)
        self._disk.sync_folder(folder)
        return SpooledUpdate.load(target)

    def discard_after(self, round_number: int) -> None:
        """Remove the updates of later rounds: they were trained on a version that is made anew."""
        for folder in self.directory.iterdir():
            matched = _ROUND.fullmatch(folder.name)
            if matched and int(matched[1]) > round_number:
                shutil.rmtree(folder)

    def discard(self, up_to_round: int) -> None:
        """Remove everything of this round and earlier ones: they are part of a committed version, or never will be.

        A file on its way is left: its writer ends it, and a late update may count in a later round.
        """
        for folder in self.directory.iterdir():
            matched = _ROUND.fullmatch(folder.name)
            if matched and int(matched[1]) <= up_to_round:
                try:
                    for path in folder.iterdir():
                        if not path.name.endswith(_PARTIAL):
                            path.unlink(missing_ok=True)
                    folder.rmdir()
                    _FOLDERS.discard(folder)
                except OSError as error:
                    # A straggler's upload is ending there right now; the next call takes what is left.
                    logger.info("%s is left for the next time: %s", folder, error)


def _load(path: Path, round_number: int, verify: bool) -> SpooledUpdate | None:
    try:
        update = SpooledUpdate.load(path)
        _require_not_later(update, round_number)
        if verify:
            update.verify()
    except SpoolError as error:
        logger.warning("dropped a spooled update: %s", error)
        path.unlink(missing_ok=True)
        return None
    return update


def _require_not_later(update: SpooledUpdate, round_number: int) -> None:
    if update.header.round > round_number:
        raise SpoolError(f"{update.path} is of round {update.header.round}")
