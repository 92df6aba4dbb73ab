"""One update in one file: the server's spool and the client's kept update have the same format.

While it is written a file has a temporary name; `UpdateFileWriter.commit` makes it durable (fsync, rename, fsync of
the folder) before it returns. Everything here blocks: call it off the event loop.

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

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
import xxhash

from common.durable import DURABLE, Disk
from common.errors import FedmtlError, ProtocolError
from common.messages import TensorHeader, UpdateHeader
from common.tensors import Array, EncodedTensor, payload_checksum
from common.wire import decode_frame, encode_frame

_PREFIX: Final = struct.Struct("<8sII")
_MAGIC: Final = b"FMTLUPD\x01"
_ALIGN: Final = 64
_READ_BYTES: Final = 2**22

#: How far `UpdateFileWriter.commit` is.
Step = Literal["written", "synced", "renamed"]


class UpdateFileError(FedmtlError):
    """A file that is torn, altered, not readable or no update."""


class UpdateFileWriter:
    """Takes the payloads of one update: a sink for `common.stream.StreamReceiver`.

    Args:
        partial: the temporary name, in a folder that exists. Make it unique; no such file may exist.
        header: the update's header.
        disk: how carefully to write.

    Attributes:
        begin: where the header ends in the file.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, partial: Path, header: UpdateHeader, disk: Disk = DURABLE) -> None:
        self._partial = partial
        self._disk = disk
        frame = encode_frame(header)
        prefix = _PREFIX.pack(_MAGIC, len(frame), 0) + frame
        self.begin = len(prefix)
        self._offsets, self._size = _layout(header, self.begin)
        # A connection that ends abandons its update while a thread may still be writing a chunk of it; without
        # the lock the thread could write to a descriptor that by then belongs to another file.
        self._lock = threading.Lock()
        self._file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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

    def commit(self, final: Path, reached: Callable[[Step], None] = lambda _step: None) -> None:
        """Make the update durable; when this returns it survives a crash of the machine.

        Args:
            final: the name it gets, on the same file system; what has that name is replaced.
            reached: called after each step, for failure points.

        Raises:
            OSError: it could not be written; nothing is left under the temporary name.
        """
        try:
            with self._lock:
                os.ftruncate(self._file, self._size)
                reached("written")
                self._disk.sync(self._file)
                reached("synced")
                self._partial.replace(final)
                self._close()
        except OSError:
            self.abandon()
            raise
        reached("renamed")
        self._disk.sync_folder(final.parent)

    def abandon(self) -> None:
        """Forget what has come; harmless after `commit` or twice."""
        with self._lock:
            if self._file >= 0:
                self._close()
                self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, -1
        os.close(file)


class UpdateFile:
    """An update on disk. Between `open` and `close` it can be read, by any thread.

    Attributes:
        path: its file.
        header: what it holds.
    """

    def __init__(self, path: Path, header: UpdateHeader, begin: int) -> None:
        """`begin` is where the header ends in the file."""
        self.path = path
        self.header = header
        self._offsets, self._size = _layout(header, begin)
        self._file = -1

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the header of a file and check the file's size; payloads are checked by `verify` or `tensors`.

        Raises:
            UpdateFileError: it is torn, or no update.
        """
        try:
            with path.open("rb") as file:
                magic, length, _ = _PREFIX.unpack(file.read(_PREFIX.size))
                if magic != _MAGIC:
                    raise UpdateFileError(f"{path} is not an update file")
                size = os.fstat(file.fileno()).st_size
                header = decode_frame(file.read(min(length, size)))
        except (OSError, struct.error, ProtocolError) as error:
            raise UpdateFileError(f"{path} can't be read: {error}") from error
        if not isinstance(header, UpdateHeader):
            raise UpdateFileError(f"{path} holds a {header.type} message")
        update = cls(path, header, _PREFIX.size + length)
        if size != update._size:
            raise UpdateFileError(f"{path} has {size} bytes, {update._size} by its header")
        return update

    def open(self) -> None:
        """Make payloads readable; harmless twice."""
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Release the file; harmless twice."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def offset_of(self, tensor: int) -> int:
        """Where the payload of header number `tensor` begins, for `read`."""
        return self._offsets[tensor]

    def read(self, offset: int, out: Array) -> None:
        """Fill `out` from the bytes at `offset`.

        Raises:
            UpdateFileError: the file is not open or ends before.
        """
        if self._file < 0:
            raise UpdateFileError(f"{self.path} is not open")
        view = out.view(np.uint8).data
        done = 0
        while done < view.nbytes:
            got = os.preadv(self._file, [view[done:]], offset + done)
            if not got:
                raise UpdateFileError(f"{self.path} ends early")
            done += got

    def verify(self) -> None:
        """Read every payload and compare its checksum, in a few MB of memory.

        Raises:
            UpdateFileError: one differs, or can't be read.
        """
        buffer = np.empty(_READ_BYTES, np.uint8)
        with self._readable():
            for header, offset in zip(self.header.tensors, self._offsets, strict=True):
                digest = xxhash.xxh3_64()
                for start in range(0, header.nbytes, _READ_BYTES):
                    piece = buffer[: min(_READ_BYTES, header.nbytes - start)]
                    self.read(offset + start, piece)
                    digest.update(piece.data)
                self._require_checksum(header, digest.intdigest())

    def tensors(self) -> list[EncodedTensor]:
        """Every tensor, read into memory and compared with its checksum.

        Raises:
            UpdateFileError: one differs, or can't be read.
        """
        with self._readable():
            return [self._tensor(number) for number in range(len(self.header.tensors))]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Open for the time being, unless it is already."""
        was_open = self._file >= 0
        try:
            self.open()
            yield
        except OSError as error:
            raise UpdateFileError(f"{self.path} can't be read: {error}") from error
        finally:
            if not was_open:
                self.close()

    def _tensor(self, number: int) -> EncodedTensor:
        header = self.header.tensors[number]
        payload = np.empty(header.nbytes, np.uint8)
        self.read(self._offsets[number], payload)
        parts = (payload.data,) if header.nbytes else ()
        self._require_checksum(header, payload_checksum(parts))
        return EncodedTensor(header, parts)

    def _require_checksum(self, header: TensorHeader, found: int) -> None:
        if found != header.checksum:
            raise UpdateFileError(f"{self.path}: slot {header.slot!r} does not have its checksum")


def _layout(header: UpdateHeader, begin: int) -> tuple[tuple[int, ...], int]:
    """Where each payload begins, and how long the file is; `begin` is where the header ends."""
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
