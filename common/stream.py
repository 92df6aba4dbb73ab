"""Tensors cut into chunks and put together again, without I/O.

A stream is announced by a message that lists tensor headers (`Work`, `UpdateHeader`) or an asset
(`Welcome`); its chunks follow in order: tensor after tensor, offset after offset, nothing for tensors
that are held or empty. Chunks of one stream may be mixed with other messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import xxhash

from common.errors import ProtocolError
from common.messages import ALIGNMENT, Asset, Chunk, TensorHeader
from common.tensors import EncodedTensor, all_finite, check_rows
from common.wire import chunk_frame

#: Bytes of data per chunk unless configured otherwise.
DEFAULT_CHUNK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What a receiver accepts, checked against the headers before a byte is stored.

    Attributes:
        max_tensors: number of headers.
        max_tensor_bytes: payload of one tensor.
        max_total_bytes: payloads of the stream together.
    """

    max_tensors: int = 16_384
    max_tensor_bytes: int = 2**33
    max_total_bytes: int = 2**36


class Sink(Protocol):
    """Where the bytes of a stream go."""

    def write(self, tensor: int, offset: int, data: memoryview) -> None:
        """Store `data` at `offset` of the payload of header number `tensor`; called in order, without gaps."""


class MemorySink:
    """Keeps payloads in memory, each allocated when its first byte arrives."""

    def __init__(self, headers: Sequence[TensorHeader]) -> None:
        self._headers = tuple(headers)
        self._buffers: dict[int, memoryview] = {}

    def write(self, tensor: int, offset: int, data: memoryview) -> None:
        """Copy `data` to its place."""
        self._buffer(tensor)[offset : offset + data.nbytes] = data

    def payload(self, tensor: int) -> memoryview:
        """The (writable) payload of header number `tensor`."""
        return self._buffer(tensor)

    def _buffer(self, tensor: int) -> memoryview:
        if tensor not in self._buffers:
            # empty, not zeros: all of it is overwritten before the tensor counts as complete.
            self._buffers[tensor] = np.empty(self._headers[tensor].nbytes, np.uint8).data
        return self._buffers[tensor]


def chunk_frames(stream: int, tensors: Sequence[EncodedTensor], chunk_bytes: int) -> Iterator[bytes]:
    """The chunk frames of a stream, built one at a time as they are asked for.

    Args:
        stream: the stream's id, as announced.
        tensors: in header order; held and empty ones give no frame.
        chunk_bytes: most bytes of data per frame, a positive multiple of 8.
    """
    _require_chunk_bytes(chunk_bytes)
    for index, tensor in enumerate(tensors):
        yield from tensor_frames(stream, index, tensor, chunk_bytes)


def tensor_frames(stream: int, index: int, tensor: EncodedTensor, chunk_bytes: int) -> Iterator[bytes]:
    """The chunk frames of one tensor of a stream; none when it is held or empty.

    Args:
        stream: the stream's id, as announced.
        index: the tensor's place in the list of headers.
        tensor: what to send.
        chunk_bytes: most bytes of data per frame, a positive multiple of 8.
    """
    _require_chunk_bytes(chunk_bytes)
    if tensor.header.held:
        return
    offset = 0
    for data in _pieces(tensor.parts, chunk_bytes):
        yield chunk_frame(stream, index, offset, data)
        offset += data.nbytes


def asset_frames(stream: int, content: bytes, chunk_bytes: int) -> Iterator[bytes]:
    """The chunk frames of one asset."""
    _require_chunk_bytes(chunk_bytes)
    view = memoryview(content)
    for offset in range(0, len(view), chunk_bytes):
        yield chunk_frame(stream, 0, offset, view[offset : offset + chunk_bytes])


class StreamReceiver:
    """Puts the chunks of one stream together, tensor by tensor; nothing incomplete or altered gets through.

    Args:
        stream: the stream's id.
        headers: the headers that announced it.
        sink: where the bytes go.
        limits: what is too large.
        finite: refuse NaN and infinity in float tensors.

    Raises:
        ProtocolError: ``too_large``.
    """

    def __init__(
        self,
        stream: int,
        headers: Sequence[TensorHeader],
        sink: Sink,
        limits: StreamLimits | None = None,
        *,
        finite: bool = True,
    ) -> None:
        _require_within(headers, limits or StreamLimits())
        self.stream = stream
        self.headers = tuple(headers)
        self._sink = sink
        self._finite = finite
        self._expected = iter([index for index, header in enumerate(self.headers) if header.nbytes and not header.held])
        self._failed = False
        self._tensor = next(self._expected, None)
        self._offset = 0
        self._last_row = -1
        self._digest = xxhash.xxh3_64()

    @property
    def complete(self) -> bool:
        """Every tensor that was to come has come, and its checksum was right."""
        return self._tensor is None

    @property
    def received_bytes(self) -> int:
        """Payload bytes of the tensor being received."""
        return self._offset

    def accept(self, chunk: Chunk) -> tuple[int, ...]:
        """Take the next chunk.

        Returns:
            indices of the headers whose tensors are complete with this chunk (none or one).

        Raises:
            ProtocolError: ``out_of_order``, ``malformed``, ``checksum`` or ``non_finite``; the stream
                is dead after that and refuses all further chunks.
        """
        try:
            return self._accept(chunk)
        except ProtocolError:
            self._failed = True
            raise

    def _accept(self, chunk: Chunk) -> tuple[int, ...]:
        data = memoryview(chunk.data)
        tensor = self._tensor
        if self._failed or chunk.stream != self.stream or tensor is None:
            raise ProtocolError("out_of_order", f"no chunk of stream {chunk.stream} is expected")
        if (chunk.tensor, chunk.offset) != (tensor, self._offset):
            raise ProtocolError(
                "out_of_order",
                f"stream {self.stream}: tensor {chunk.tensor} offset {chunk.offset} came, "
                f"tensor {tensor} offset {self._offset} was next",
            )
        header = self.headers[tensor]
        end = self._offset + data.nbytes
        if not data.nbytes or end > header.nbytes or (data.nbytes % ALIGNMENT and end != header.nbytes):
            raise ProtocolError(
                "malformed", f"slot {header.slot!r}: {data.nbytes} bytes at {self._offset} of {header.nbytes}"
            )
        self._check(header, data)
        self._digest.update(data)
        self._sink.write(tensor, self._offset, data)
        self._offset = end
        if end < header.nbytes:
            return ()
        if self._digest.intdigest() != header.checksum:
            raise ProtocolError("checksum", f"slot {header.slot!r}: the payload does not have its checksum")
        self._advance()
        return (tensor,)

    def _check(self, header: TensorHeader, data: memoryview) -> None:
        """Look at the elements while they are in the cache."""
        in_index = max(0, min(header.index_bytes - self._offset, data.nbytes))
        if in_index:
            words = np.frombuffer(data[:in_index], "<u4")
            rows = words[: max(0, (header.rows or 0) - self._offset // 4)]
            check_rows(header, rows, self._last_row)
            self._last_row = int(rows[-1]) if len(rows) else self._last_row
            if words[len(rows) :].any():
                raise ProtocolError("malformed", f"slot {header.slot!r}: the padding after the row indices is not zero")
        if self._finite and not all_finite(header.dtype, data[in_index:]):
            raise ProtocolError("non_finite", f"slot {header.slot!r} has NaN or infinite elements")

    def _advance(self) -> None:
        self._tensor = next(self._expected, None)
        self._offset = 0
        self._last_row = -1
        self._digest = xxhash.xxh3_64()


class AssetReceiver:
    """Puts the chunks of one asset together and checks its sha256.

    Raises:
        ProtocolError: ``too_large``.
    """

    def __init__(self, asset: Asset, max_bytes: int = 2**28) -> None:
        if asset.nbytes > max_bytes:
            raise ProtocolError("too_large", f"asset {asset.name!r} of {asset.nbytes} bytes, allowed are {max_bytes}")
        self.asset = asset
        self._content = bytearray()

    @property
    def complete(self) -> bool:
        """All bytes have come."""
        return len(self._content) == self.asset.nbytes

    def accept(self, chunk: Chunk) -> bytes | None:
        """Take the next chunk; the content once it is complete, else None.

        Raises:
            ProtocolError: ``out_of_order``, ``malformed`` or ``checksum``.
        """
        if chunk.stream != self.asset.stream or chunk.tensor != 0 or chunk.offset != len(self._content):
            raise ProtocolError("out_of_order", f"asset {self.asset.name!r}: chunk at {chunk.offset} not expected")
        size = memoryview(chunk.data).nbytes
        if not size or chunk.offset + size > self.asset.nbytes:
            raise ProtocolError("malformed", f"asset {self.asset.name!r}: {size} bytes at {chunk.offset}")
        self._content += chunk.data
        return self.content() if self.complete else None

    def content(self) -> bytes:
        """The asset; for an empty one without any chunk.

        Raises:
            ProtocolError: ``checksum``, or ``malformed`` when it is not complete.
        """
        if not self.complete:
            raise ProtocolError("malformed", f"asset {self.asset.name!r} is not complete")
        content = bytes(self._content)
        if hashlib.sha256(content).hexdigest() != self.asset.sha256:
            raise ProtocolError("checksum", f"asset {self.asset.name!r} does not have its sha256")
        return content


def _require_chunk_bytes(chunk_bytes: int) -> None:
    if chunk_bytes < ALIGNMENT or chunk_bytes % ALIGNMENT:
        raise ValueError(f"chunk_bytes is a positive multiple of {ALIGNMENT}, not {chunk_bytes}")


def _require_within(headers: Sequence[TensorHeader], limits: StreamLimits) -> None:
    if len(headers) > limits.max_tensors:
        raise ProtocolError("too_large", f"{len(headers)} tensors, allowed are {limits.max_tensors}")
    for header in headers:
        # The dense size counts: a small `rows` payload may stand for a huge tensor.
        size = max(header.nbytes, (header.shape[0] if header.shape else 1) * header.row_bytes)
        if size > limits.max_tensor_bytes:
            raise ProtocolError(
                "too_large", f"slot {header.slot!r} of {size} bytes, allowed are {limits.max_tensor_bytes}"
            )
    total = sum(header.nbytes for header in headers)
    if total > limits.max_total_bytes:
        raise ProtocolError("too_large", f"{total} bytes of tensors, allowed are {limits.max_total_bytes}")


def _pieces(parts: Sequence[memoryview], size: int) -> Iterator[memoryview]:
    """The parts cut into views of `size` bytes; only a piece that spans two parts is copied."""
    carried = b""
    for part in parts:
        start = 0
        if carried:
            start = min(size - len(carried), part.nbytes)
            carried += bytes(part[:start])
            if len(carried) < size:
                continue
            yield memoryview(carried)
            carried = b""
        whole = start + (part.nbytes - start) // size * size
        for offset in range(start, whole, size):
            yield part[offset : offset + size]
        carried = bytes(part[whole:])
    if carried:
        yield memoryview(carried)
