"""Updates that are accepted and not yet part of a committed version, one file each, never whole in memory.

An update lies in ``round-00007/<client_id>.update`` below the spool folder. While it arrives it has a name
that ends in ``.partial``; `SpoolWriter.commit` makes it durable (fsync, rename, fsync of the folder) before it
returns, and only then may the client be told. All functions here block: call them off the event loop.

The file, all numbers little-endian:

======================  ========================================================================
bytes                   what
======================  ========================================================================
0..7                    ``FMTLUPD`` and the format version, one byte: 1
8..11                   length of the header frame
12..15                  zero
16..                    the `UpdateHeader` as the protocol's frame, its checksum included
next multiple of 64     payload of the first tensor, as received; each further one begins at the
                        next multiple of 64; the file ends with the last payload
======================  ========================================================================
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import struct
import threading
from pathlib import Path
from typing import Final

import numpy as np
import torch
import xxhash
from torch import Tensor

from common.errors import FedmtlError, ProtocolError
from common.messages import TensorHeader, UpdateHeader
from common.tensors import NUMPY_DTYPES, Array, check_rows
from common.torch_tensors import tensor_of
from common.wire import decode_frame, encode_frame
from server.aggregation.base import Delta
from server.aggregation.deltas import DenseDelta, RowsDelta
from server.aggregation.scratch import scratch

logger = logging.getLogger(__name__)

_PREFIX: Final = struct.Struct("<8sII")
_MAGIC: Final = b"FMTLUPD\x01"
_ALIGN: Final = 64
_SUFFIX: Final = ".update"
_ROUND: Final = re.compile(r"round-(\d{5,})")
_READ_BYTES: Final = 2**22


class SpoolError(FedmtlError):
    """A spooled update that is torn, altered or not readable."""


def round_folder(spool: Path, round_number: int) -> Path:
    """Where the updates of one round lie."""
    return spool / f"round-{round_number:05d}"


class SpoolWriter:
    """Takes the payloads of one update as they arrive: a sink for `common.stream.StreamReceiver`.

    Args:
        directory: the spool folder.
        header: the update's header.
        client_id: who sent it, checked before (letters, digits, ``_.-``).

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, directory: Path, header: UpdateHeader, client_id: str) -> None:
        self._header = header
        self._client_id = client_id
        folder = round_folder(directory, header.round)
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(directory)
        self._final = folder / f"{client_id}{_SUFFIX}"
        # Unique, for a client that lost its connection may send again while its old attempt is being torn down.
        self._partial = folder / f"{client_id}.{secrets.token_hex(4)}.partial"
        prefix = _file_prefix(header)
        self._begin = len(prefix)
        self._offsets, self._size = _layout(header, self._begin)
        # A connection that ends abandons its update while a thread may still be writing a chunk of it; without
        # the lock the thread could write to a descriptor that by then belongs to another client's file.
        self._lock = threading.Lock()
        self._file = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(self._file, memoryview(prefix), 0)
        except OSError:
            self.abandon()
            raise

    def write(self, tensor: int, offset: int, data: memoryview) -> None:
        """Store a piece of the payload of header number `tensor`.

        Raises:
            OSError: it can't be written, or the update was abandoned.
        """
        with self._lock:
            _write_all(self._file, data, self._offsets[tensor] + offset)

    def commit(self) -> SpooledUpdate:
        """Make the update durable; when this returns it survives a crash of the machine.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        try:
            with self._lock:
                os.ftruncate(self._file, self._size)
                os.fsync(self._file)
                self._partial.replace(self._final)
                self._close()
        except OSError:
            self.abandon()
            raise
        _sync_folder(self._final.parent)
        return SpooledUpdate(self._final, self._client_id, self._header, self._begin)

    def abandon(self) -> None:
        """Forget what has come; harmless after `commit` or twice."""
        with self._lock:
            if self._file >= 0:
                self._close()
                self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, -1
        os.close(file)


class SpooledUpdate:
    """An update on disk. Between `open` and `close` its deltas can be read, by any thread.

    Attributes:
        path: its file.
        client_id: who sent it.
        header: what it holds.
    """

    def __init__(self, path: Path, client_id: str, header: UpdateHeader, begin: int) -> None:
        """`begin` is where the header ends in the file."""
        self.path = path
        self.client_id = client_id
        self.header = header
        self._positions = {tensor.slot: index for index, tensor in enumerate(header.tensors)}
        self._offsets, self._size = _layout(header, begin)
        self._file = -1

    @classmethod
    def load(cls, path: Path) -> SpooledUpdate:
        """Read the header of a file and check the file's size; payloads are checked by `verify`.

        Raises:
            SpoolError: it is torn, or no spooled update.
        """
        try:
            with path.open("rb") as file:
                magic, length, _ = _PREFIX.unpack(file.read(_PREFIX.size))
                if magic != _MAGIC:
                    raise SpoolError(f"{path} is not a spooled update")
                size = os.fstat(file.fileno()).st_size
                header = decode_frame(file.read(min(length, size)))
        except (OSError, struct.error, ProtocolError) as error:
            raise SpoolError(f"{path} can't be read: {error}") from error
        if not isinstance(header, UpdateHeader):
            raise SpoolError(f"{path} holds a {header.type} message")
        update = cls(path, path.name.removesuffix(_SUFFIX), header, _PREFIX.size + length)
        if size != update._size:
            raise SpoolError(f"{path} has {size} bytes, {update._size} by its header")
        return update

    def open(self) -> None:
        """Make deltas readable; harmless twice."""
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Release the file; harmless twice."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def delta(self, slot_id: str) -> Delta:
        """The delta of one slot, read from the file block by block as it is used.

        Raises:
            KeyError: the update has none.
            SpoolError: the file does not hold what its header says, or is not open.
        """
        index = self._positions[slot_id]
        header, offset = self.header.tensors[index], self._offsets[index]
        if header.encoding == "raw":
            return DenseDelta(header.shape, lambda first, last: self._elements(header.dtype, offset, first, last))
        indices = np.empty(header.rows or 0, "<u4")
        self._read(offset, indices)
        try:
            check_rows(header, indices)
        except ProtocolError as error:
            raise SpoolError(f"{self.path}: {error}") from error
        values = offset + header.index_bytes
        width = header.row_bytes // NUMPY_DTYPES[header.dtype].itemsize

        def rows(first: int, last: int) -> Tensor:
            return self._elements(header.dtype, values, first * width, last * width).view(last - first, width)

        return RowsDelta(header.shape, torch.from_numpy(indices.astype(np.int64)), rows)

    def verify(self) -> None:
        """Read every payload and compare its checksum.

        Raises:
            SpoolError: one differs.
        """
        was_open = self._file >= 0
        self.open()
        try:
            for header, offset in zip(self.header.tensors, self._offsets, strict=True):
                self._verify_payload(header, offset)
        finally:
            if not was_open:
                self.close()

    def _verify_payload(self, header: TensorHeader, offset: int) -> None:
        digest = xxhash.xxh3_64()
        for start in range(0, header.nbytes, _READ_BYTES):
            piece = scratch("file", min(_READ_BYTES, header.nbytes - start))
            self._read(offset + start, piece)
            digest.update(piece.data)
        if digest.intdigest() != header.checksum:
            raise SpoolError(f"{self.path}: slot {header.slot!r} does not have its checksum")

    def _elements(self, dtype: str, offset: int, first: int, last: int) -> Tensor:
        """Elements first..last-1 of the payload at `offset`, in this thread's scratch memory."""
        numpy_dtype = NUMPY_DTYPES[dtype]
        elements = scratch("file", (last - first) * numpy_dtype.itemsize).view(numpy_dtype)
        self._read(offset + first * numpy_dtype.itemsize, elements)
        return tensor_of(elements, dtype)

    def _read(self, offset: int, out: Array) -> None:
        if self._file < 0:
            raise SpoolError(f"{self.path} is not open")
        view = out.view(np.uint8).data
        done = 0
        while done < view.nbytes:
            got = os.preadv(self._file, [view[done:]], offset + done)
            if not got:
                raise SpoolError(f"{self.path} ends early")
            done += got


class Spool:
    """The spool folder as a whole.

    Args:
        directory: made when it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def load(self, round_number: int, *, verify: bool = False) -> list[SpooledUpdate]:
        """The updates of a round that survived, by client id; what is torn or altered is logged and removed.

        Args:
            round_number: which round.
            verify: also read all payloads and compare checksums.
        """
        folder = round_folder(self.directory, round_number)
        if not folder.is_dir():
            return []
        for partial in folder.glob("*.partial"):
            partial.unlink()
        found = (_load(path, round_number, verify) for path in folder.glob(f"*{_SUFFIX}"))
        return sorted((update for update in found if update is not None), key=lambda update: update.client_id)

    def drop(self, update: SpooledUpdate) -> None:
        """Remove one update that does not count after all."""
        update.close()
        update.path.unlink(missing_ok=True)

    def discard(self, up_to_round: int) -> None:
        """Remove everything of this round and earlier ones: they are part of a committed version, or never will be."""
        for folder in self.directory.iterdir():
            matched = _ROUND.fullmatch(folder.name)
            if matched and int(matched[1]) <= up_to_round:
                try:
                    shutil.rmtree(folder)
                except OSError as error:
                    # A straggler's upload is ending there right now; the next call takes what is left.
                    logger.info("%s is left for the next time: %s", folder, error)


def _load(path: Path, round_number: int, verify: bool) -> SpooledUpdate | None:
    try:
        update = SpooledUpdate.load(path)
        _require_round(update, round_number)
        if verify:
            update.verify()
    except SpoolError as error:
        logger.warning("dropped a spooled update: %s", error)
        path.unlink(missing_ok=True)
        return None
    return update


def _require_round(update: SpooledUpdate, round_number: int) -> None:
    if update.header.round != round_number:
        raise SpoolError(f"{update.path} is of round {update.header.round}")


def _file_prefix(header: UpdateHeader) -> bytes:
    frame = encode_frame(header)
    return _PREFIX.pack(_MAGIC, len(frame), 0) + frame


def _layout(header: UpdateHeader, begin: int) -> tuple[tuple[int, ...], int]:
    """Where each payload begins, and how long the file is."""
    offsets, end = [], begin
    for tensor in header.tensors:
        offsets.append(-(-end // _ALIGN) * _ALIGN)
        end = offsets[-1] + tensor.nbytes
    return tuple(offsets), end


def _write_all(file: int, data: memoryview, offset: int) -> None:
    view = data.cast("B") if data.nbytes else data
    while view.nbytes:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
