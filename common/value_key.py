"""The name of a tensor's payload: its checksum and size. Two equal payloads have one name, whatever slots hold them.

A client lists what it has on its disk by these names (`common.messages.Ready.held`); packed they take 16 bytes each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

#: Most names in one list.
MAX_HELD: Final = 16_384
_PAIR: Final = struct.Struct("<QQ")
#: Bytes of one name in a list.
KEY_BYTES: Final = _PAIR.size


class ValueKey(NamedTuple):
    """What a payload is known by.

    Attributes:
        checksum: XXH3-64 of the payload.
        nbytes: its length.
    """

    checksum: int
    nbytes: int


def pack_keys(keys: Iterable[ValueKey]) -> bytes:
    """The list as it travels: checksum and length of each, u64 little-endian."""
    return b"".join(_PAIR.pack(*key) for key in keys)


def unpack_keys(packed: bytes) -> frozenset[ValueKey]:
    """Inverse of `pack_keys`.

    Raises:
        ValueError: the length is no multiple of `KEY_BYTES`.
    """
    if len(packed) % KEY_BYTES:
        raise ValueError(f"{len(packed)} bytes are no list of {KEY_BYTES} bytes each")
    return frozenset(ValueKey(*pair) for pair in _PAIR.iter_unpack(packed))
