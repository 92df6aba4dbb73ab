"""Names of payloads survive the wire, and what is no list of names is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.messages import Ready
from common.value_key import KEY_BYTES, MAX_HELD, ValueKey, pack_keys, unpack_keys
from common.wire import decode_frame, encode_frame

U64 = st.integers(0, 2**64 - 1)
KEYS = st.frozensets(st.builds(ValueKey, U64, U64), max_size=20)


@given(KEYS)
def test_what_is_listed_comes_back(keys: frozenset[ValueKey]) -> None:
    ready = decode_frame(encode_frame(Ready(tasks={}, held=pack_keys(sorted(keys)))))
    assert isinstance(ready, Ready)
    assert unpack_keys(ready.held) == keys
    assert len(ready.held) == KEY_BYTES * len(keys)


def test_the_bytes_are_those_of_the_document() -> None:
    assert pack_keys([ValueKey(1, 258)]) == bytes.fromhex("0100000000000000 0201000000000000")


@pytest.mark.parametrize("held", [bytes(KEY_BYTES - 1), bytes(KEY_BYTES + 8), bytes(KEY_BYTES * (MAX_HELD + 1))])
def test_a_list_of_another_length_is_refused(held: bytes) -> None:
    frame = encode_frame(Ready.model_construct(tasks={}, held=held))
    with pytest.raises(ProtocolError) as raised:
        decode_frame(frame)
    assert raised.value.code == "malformed"
    if len(held) % KEY_BYTES:
        with pytest.raises(ValueError, match="no list"):
            unpack_keys(held)
