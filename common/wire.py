"""Messages to bytes and back: a frame is a msgpack map followed by the XXH3-64 of the map's bytes.

Pure functions. One frame is one binary WebSocket message. Whatever bytes come in, `decode_frame`
returns a valid message or raises `ProtocolError`; the checksum makes that true of each flipped or
missing byte, which a transport without TLS does not promise.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import xxhash
from pydantic import ValidationError

from common.errors import ProtocolError
from common.messages import MESSAGE_TYPES, Chunk, Message

CHECKSUM_BYTES: Final = 8
#: Longest frame that is not a chunk.
MAX_CONTROL_BYTES: Final = 16 * 2**20
#: Most elements of one list and entries of one map.
MAX_ITEMS: Final = 2**16
#: ... and of all lists and maps of a frame together: 16 MiB of empty lists would take 1 GiB once they are objects.
MAX_ENTRIES: Final = 2**22

# The map of a chunk as this code writes it: fixed-width numbers, keys in this order, `data` last. Two
# strings use msgpack's longer form so that the header has 64 bytes and `data` keeps the frame's alignment.
# A peer may write the same map in any other valid way; reading that is then merely slower.
_CHUNK: Final = struct.Struct(">13s8sI8sI9sQ6sI")
#: Bytes of a chunk's frame, as this code writes it, that are not data.
CHUNK_OVERHEAD: Final = _CHUNK.size + CHECKSUM_BYTES
_TYPE: Final = b"\x85\xd9\x04type\xa5chunk"
_STREAM: Final = b"\xa6stream\xce"
_TENSOR: Final = b"\xa6tensor\xce"
_OFFSET: Final = b"\xd9\x06offset\xcf"
_DATA: Final = b"\xa4data\xc6"


def encode_frame(message: Message) -> bytes:
    """The bytes of one message, checksum included."""
    if isinstance(message, Chunk):
        return chunk_frame(message.stream, message.tensor, message.offset, message.data)
    body = msgpack.packb(message.model_dump())
    return bytes(body) + _checksum(body)


def chunk_frame(stream: int, tensor: int, offset: int, data: bytes | memoryview) -> bytes:
    """The frame of one chunk; `data` (a view is fine) is copied once, into the result."""
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    header = _CHUNK.pack(_TYPE, _STREAM, stream, _TENSOR, tensor, _OFFSET, offset, _DATA, size)
    digest = xxhash.xxh3_64(header)
    digest.update(data)
    return b"".join((header, data, digest.intdigest().to_bytes(CHECKSUM_BYTES, "little")))


def decode_frame(
    data: bytes | bytearray | memoryview,
    max_control_bytes: int = MAX_CONTROL_BYTES,
    max_entries: int = MAX_ENTRIES,
) -> Message:
    """The message in a frame. A chunk's data is a view into `data`: keep the frame unchanged while it is used.

    Args:
        data: the frame.
        max_control_bytes: the longest body that is no chunk.
        max_entries: most list items and map entries in it.

    Raises:
        ProtocolError: ``too_large``, ``checksum``, ``unknown_type`` or ``malformed``.
    """
    frame = memoryview(data).toreadonly()
    body = frame[:-CHECKSUM_BYTES]
    if _checksum(body) != frame[-CHECKSUM_BYTES:]:
        raise ProtocolError("checksum", f"a frame of {len(frame)} bytes does not end in the checksum of its content")
    chunk = _decode_chunk(body)
    if chunk is not None:
        return chunk
    return _decode_map(body, max_control_bytes, max_entries)


def _checksum(body: bytes | memoryview) -> bytes:
    return xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little")


def _decode_chunk(body: memoryview) -> Chunk | None:
    """The hot path: a chunk in exactly our own layout, else None."""
    if len(body) < _CHUNK.size:
        return None
    type_, in_stream, stream, in_tensor, tensor, in_offset, offset, in_data, size = _CHUNK.unpack_from(body)
    constant = (type_, in_stream, in_tensor, in_offset, in_data)
    if constant != (_TYPE, _STREAM, _TENSOR, _OFFSET, _DATA) or size != len(body) - _CHUNK.size:
        return None
    return Chunk(stream=stream, tensor=tensor, offset=offset, data=body[_CHUNK.size :])


def _decode_map(body: memoryview, limit: int, max_entries: int) -> Message:
    # A chunk in another layout than ours is small too, beside its data.
    content = _unpack(body, max_entries)
    name = content.get("type")
    model = MESSAGE_TYPES.get(name) if isinstance(name, str) else None
    if model is None:
        named = _shorten(ascii(name)) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise ProtocolError("unknown_type", f"message type {named} is not known")
    if model is not Chunk and len(body) > limit:
        raise ProtocolError("too_large", f"a {name} message of {len(body)} bytes, allowed are {limit}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ProtocolError("malformed", f"{name} message: {_explain(error)}") from None


def _unpack(body: memoryview, max_entries: int) -> Mapping[str, Any]:
    left = max_entries

    def count(entries: Any) -> Any:  # noqa: ANN401  # a list or map as it was unpacked, handed on
        nonlocal left
        left -= 1 + len(entries)
        if left < 0:
            raise ProtocolError("too_large", f"a message with more than {max_entries} entries")
        return entries

    try:
        content = msgpack.unpackb(
            body,
            strict_map_key=True,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            list_hook=count,
            object_hook=count,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError("malformed", f"not msgpack: {type(error).__name__}: {_shorten(str(error))}") from None
    if not isinstance(content, dict):
        raise ProtocolError("malformed", f"a frame holds a map, not {type(content).__name__}")
    return content


def _explain(error: ValidationError) -> str:
    """The first complaint, without the value: that came from a peer and may be large."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # Names of fields are ours, keys of a map are the peer's: written so that they can't forge a line of a log.
    where = ".".join(ascii(str(part))[1:-1] for part in problems[0]["loc"]) or "message"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_shorten(where, 200)}: {problems[0]['msg']}{more}"


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
