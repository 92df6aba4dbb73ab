"""Tensors as bytes: the payload encodings ``raw`` and ``rows``, without copies where none is needed.

``raw`` is every element, row-major, little-endian. ``rows`` is for deltas of embedding tables, most rows
of which no batch touched: the indices of the rows that are not all zero bits (uint32, little-endian,
strictly increasing), zero padding to a multiple of 8 bytes, then the elements of these rows. Both
give the tensor back bit for bit.

Free of torch, so that a client without it can speak the protocol; `common.torch_tensors` converts.
bfloat16 has no numpy type: its elements are carried as uint16 bit patterns.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import xxhash

from common.errors import ProtocolError, UpdateRejected
from common.messages import DType, TensorHeader

Array = np.ndarray[Any, np.dtype[Any]]

#: numpy's little-endian type of each element type; bfloat16 as bit patterns.
NUMPY_DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "float64": np.dtype("<f8"),
        "float32": np.dtype("<f4"),
        "float16": np.dtype("<f2"),
        "bfloat16": np.dtype("<u2"),
        "int64": np.dtype("<i8"),
        "int32": np.dtype("<i4"),
        "uint8": np.dtype("u1"),
        "bool": np.dtype("?"),
    }
)
_NAMES: Final[Mapping[np.dtype[Any], DType]] = MappingProxyType(
    {np.dtype(name): name for name in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")}
)
#: `rows` is chosen when its payload is at most this part of the raw one.
ROWS_WORTHWHILE: Final = 0.9
_INDEX: Final = np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A header and its payload as views of the tensor's own memory: valid while that is unchanged.

    Attributes:
        header: what travels before the payload.
        parts: flat byte views whose concatenation is the payload.
    """

    header: TensorHeader
    parts: tuple[memoryview, ...]

    def as_held(self) -> EncodedTensor:
        """The same tensor for a receiver that has it already: no payload."""
        return EncodedTensor(self.header.model_copy(update={"held": True}), ())


def encode_tensor(slot: str, array: Array, *, allow_rows: bool = False, dtype: str | None = None) -> EncodedTensor:
    """Lay out one tensor for the wire.

    Args:
        slot: the slot's id.
        array: any shape; copied only if it is not contiguous and little-endian.
        allow_rows: use ``rows`` where the tensor has 2 dimensions or more and that is clearly smaller.
        dtype: element type by name; needed for ``bfloat16`` (then `array` holds uint16 bit patterns).

    Raises:
        ValueError: an element type that does not travel.
    """
    name = dtype or _NAMES.get(array.dtype.newbyteorder("="))
    if name is None or name not in NUMPY_DTYPES or NUMPY_DTYPES[name].itemsize != array.dtype.itemsize:
        raise ValueError(f"slot {slot!r}: elements of type {dtype or array.dtype} do not travel")
    # ascontiguousarray makes a scalar 1-D, hence the shape is taken before.
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    rows = _rows_worth_sending(flat) if allow_rows else None
    if rows is None:
        parts: tuple[memoryview, ...] = (_bytes_of(flat),)
    else:
        parts = _rows_payload(rows, flat[rows])
    return _encoded(slot, name, array.shape, None if rows is None else len(rows), parts)


def encode_rows(slot: str, rows: Array, values: Array, shape: tuple[int, ...], *, dtype: str) -> EncodedTensor | None:
    """Lay out a tensor of which only some rows are given; the others are zero.

    The bytes are those that `encode_tensor` with ``allow_rows`` makes of the whole tensor.

    Args:
        slot: the slot's id.
        rows: ``(R,)``, strictly increasing indices.
        values: ``(R, *shape[1:])``, these rows' elements; rows of zero bits are left out.
        shape: of the whole tensor, 2 dimensions or more.
        dtype: element type by name.

    Returns:
        None where all elements are sent as well (`ROWS_WORTHWHILE`): encode the whole tensor then.

    Raises:
        ValueError: an element type that does not travel, or rows that don't fit the shape.
    """
    if NUMPY_DTYPES.get(dtype) != values.dtype or values.shape != (len(rows), *shape[1:]) or len(shape) < 2:
        raise ValueError(f"slot {slot!r}: {values.dtype} of shape {values.shape} are no rows of {dtype}{list(shape)}")
    flat = np.ascontiguousarray(values)
    if not flat.size or shape[0] >= 2**32:
        return None if flat.size or not shape[0] else _encoded(slot, dtype, shape, 0, ())
    kept = np.flatnonzero(_any_bits(flat))
    index = rows[kept].astype(_INDEX)
    size = _rows_size(len(index), flat.nbytes // len(flat))
    if size > ROWS_WORTHWHILE * shape[0] * (flat.nbytes // len(flat)):
        return None
    return _encoded(
        slot, dtype, shape, len(index), _rows_payload(index, flat if len(kept) == len(flat) else flat[kept])
    )


def _encoded(
    slot: str, dtype: str, shape: tuple[int, ...], rows: int | None, parts: tuple[memoryview, ...]
) -> EncodedTensor:
    """Header and payload; `rows` is None for ``raw``."""
    kept = tuple(part for part in parts if part.nbytes)
    header = TensorHeader.model_validate(
        {
            "slot": slot,
            "dtype": dtype,
            "shape": shape,
            "encoding": "raw" if rows is None else "rows",
            "rows": rows,
            "nbytes": sum(part.nbytes for part in kept),
            "checksum": payload_checksum(kept),
        }
    )
    return EncodedTensor(header, kept)


def _rows_payload(rows: Array, values: Array) -> tuple[memoryview, ...]:
    padding = b"\0" * (-rows.nbytes % 8)
    return memoryview(rows.tobytes() + padding), _bytes_of(values)


def _rows_size(rows: int, row_bytes: int) -> int:
    return -(-rows * _INDEX.itemsize // 8) * 8 + rows * row_bytes


def payload_checksum(parts: Sequence[bytes | bytearray | memoryview]) -> int:
    """XXH3-64 (seed 0) of the concatenated parts."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def decode_tensor(header: TensorHeader, payload: bytes | bytearray | memoryview) -> Array:
    """The dense tensor; for ``raw`` a view of `payload`. bfloat16 comes as uint16 bit patterns.

    The payload's checksum is not computed again here: `common.stream.StreamReceiver` has done so.

    Raises:
        ProtocolError: the payload does not fit its header.
    """
    dtype = NUMPY_DTYPES[header.dtype]
    if header.encoding == "raw":
        _require_length(header, payload)
        return np.frombuffer(payload, dtype).reshape(header.shape)
    indices, values = decode_rows(header, payload)
    dense = np.zeros(header.shape, dtype)
    dense[indices] = values
    return dense


def decode_rows(header: TensorHeader, payload: bytes | bytearray | memoryview) -> tuple[Array, Array]:
    """Views of a ``rows`` payload.

    Returns:
        indices (uint32, strictly increasing, shape ``(rows,)``) and values, shape ``(rows, *shape[1:])``.

    Raises:
        ProtocolError: the payload does not fit its header, or the indices are out of range or order.
    """
    _require_length(header, payload)
    if header.rows is None:
        raise ProtocolError("malformed", f"slot {header.slot!r} is not encoded by rows")
    indices = np.frombuffer(payload, _INDEX, count=header.rows)
    check_rows(header, indices)
    values = np.frombuffer(payload, NUMPY_DTYPES[header.dtype], offset=header.index_bytes)
    return indices, values.reshape(header.rows, *header.shape[1:])


def check_rows(header: TensorHeader, indices: Array, after: int = -1) -> None:
    """Refuse row indices that are not strictly increasing, above `after` and inside the tensor.

    Raises:
        ProtocolError: they are not.
    """
    if not len(indices):
        return
    if int(indices[0]) <= after or not bool((indices[1:] > indices[:-1]).all()):
        raise ProtocolError("malformed", f"slot {header.slot!r}: row indices are not strictly increasing")
    if int(indices[-1]) >= header.shape[0]:
        raise ProtocolError(
            "malformed", f"slot {header.slot!r}: row index {int(indices[-1])}, but it has {header.shape[0]} rows"
        )


def all_finite(dtype: str, data: bytes | bytearray | memoryview) -> bool:
    """True when no element of the buffer is NaN or infinite; integers always are finite."""
    elements = np.frombuffer(data, NUMPY_DTYPES[dtype])
    if dtype == "bfloat16":
        # Infinity and NaN are the bit patterns with all 8 exponent bits set.
        return not bool(((elements & 0x7F80) == 0x7F80).any())
    return elements.dtype.kind != "f" or bool(np.isfinite(elements).all())


def require_match(header: TensorHeader, shape: Sequence[int], dtype: str) -> None:
    """Refuse a tensor that is not what its slot holds.

    Raises:
        UpdateRejected: ``wrong_shape`` or ``wrong_dtype``.
    """
    if header.shape != tuple(shape):
        raise UpdateRejected("wrong_shape", f"slot {header.slot!r} has shape {list(shape)}, not {list(header.shape)}")
    if header.dtype != dtype:
        raise UpdateRejected("wrong_dtype", f"slot {header.slot!r} has elements of {dtype}, not {header.dtype}")


def _bytes_of(array: Array) -> memoryview:
    """A flat byte view; through a uint8 array since memoryview itself can't cast a zero-sized shape."""
    return array.reshape(-1).view(np.uint8).data


def _require_length(header: TensorHeader, payload: bytes | bytearray | memoryview) -> None:
    size = memoryview(payload).nbytes
    if size != header.nbytes:
        raise ProtocolError("malformed", f"slot {header.slot!r}: {size} bytes of payload, not {header.nbytes}")


def _rows_worth_sending(array: Array) -> Array | None:
    """Indices of the rows with any non-zero bit, or None where sending all elements is as good."""
    if array.ndim < 2 or not array.size or array.shape[0] >= 2**32:
        return None
    rows = np.flatnonzero(_any_bits(array)).astype(_INDEX)
    return rows if _rows_size(len(rows), array.nbytes // array.shape[0]) <= ROWS_WORTHWHILE * array.nbytes else None


def _any_bits(array: Array) -> Array:
    """(R,), nonzero for each row of a contiguous array that is not all zero bits; -0.0 has one."""
    row_bytes = array.nbytes // array.shape[0]
    # The widest integer that divides a row.
    width = next(width for width in (8, 4, 2, 1) if row_bytes % width == 0)
    bits = array.reshape(-1).view(f"u{width}").reshape(array.shape[0], row_bytes // width)
    any_bits: Array = np.bitwise_or.reduce(bits, axis=1)
    return any_bits


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("fedmtl moves little-endian memory as it is; this machine is big-endian")
