from __future__ import annotations

from typing import Any

import msgpack
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.messages import MESSAGE_TYPES, Chunk, Heartbeat, Hello, Message, Work
from common.wire import CHECKSUM_BYTES, MAX_CONTROL_BYTES, MAX_ITEMS, chunk_frame, decode_frame, encode_frame
from tests.common.wire_strategies import messages


def sealed(body: bytes) -> bytes:
    """A frame with the right checksum around any body."""
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(CHECKSUM_BYTES, "little")


def decoded(frame: bytes) -> Message | ProtocolError:
    """The message or the refusal: anything else that `decode_frame` might raise is a crash."""
    try:
        return decode_frame(frame)
    except ProtocolError as error:
        return error


def frame_of(content: object) -> bytes:
    return sealed(msgpack.packb(content))


@given(messages)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert decode_frame(encode_frame(message)) == message


@given(messages)
def test_a_chunk_written_by_another_msgpack_library_reads_the_same(message: Message) -> None:
    assert decode_frame(frame_of(message.model_dump())) == message


@given(messages, st.data())
def test_a_flipped_bit_is_refused(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ProtocolError, match="checksum"):
        decode_frame(frame)


@given(messages, st.data())
def test_a_truncated_or_lengthened_frame_is_refused(message: Message, data: st.DataObject) -> None:
    frame = encode_frame(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for torn in (frame[:cut], frame[cut + 1 :], frame + data.draw(st.binary(min_size=1, max_size=9))):
        with pytest.raises(ProtocolError, match="checksum"):
            decode_frame(torn)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_frame(data)


@given(st.binary(max_size=200))
@example(b"\xc1")
@example(b"\x81\xa4type\xa5chunk" + b"\x00")
@example(b"\x91" * 200)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xd6\xff\x00\x00\x00\x00")
def test_arbitrary_bytes_under_a_right_checksum_decode_or_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_frame(sealed(body))
    assert caught.value.code in {"malformed", "unknown_type"}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@given(st.sampled_from(sorted(MESSAGE_TYPES)), st.data())
def test_a_message_with_fields_of_any_kind_decodes_or_is_refused(name: str, data: st.DataObject) -> None:
    fields = st.sampled_from(sorted(MESSAGE_TYPES[name].model_fields.keys() - {"type"}))
    content = data.draw(st.dictionaries(fields, values)) | {"type": name}
    result = decoded(frame_of(content))
    if isinstance(result, ProtocolError):
        assert result.code == "malformed"
    else:
        # As bytes, for NaN in a free-form field is not equal to itself.
        assert encode_frame(decode_frame(encode_frame(result))) == encode_frame(result)


@given(messages, st.data())
def test_one_field_replaced_by_anything_decodes_or_is_refused(message: Message, data: st.DataObject) -> None:
    content: dict[str, Any] = message.model_dump()
    content[data.draw(st.sampled_from(sorted(content.keys() - {"type"})))] = data.draw(values)
    result = decoded(frame_of(content))
    if isinstance(result, ProtocolError):
        assert result.code == "malformed"
    else:
        assert type(result) is type(message)


@given(messages, st.dictionaries(st.text(min_size=1, max_size=5).map("x_".__add__), values, max_size=3))
def test_unknown_fields_are_ignored(message: Message, extra: dict[str, Any]) -> None:
    assert decode_frame(frame_of(message.model_dump() | extra)) == message


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match="telepathy") as caught:
        decode_frame(frame_of({"type": "telepathy"}))
    assert caught.value.code == "unknown_type"


@pytest.mark.parametrize("content", [{"type": ["hello"]}, {"type": b"hello"}, {}, {"type": None}])
def test_a_type_that_is_no_name_is_refused(content: object) -> None:
    with pytest.raises(ProtocolError, match="unknown_type"):
        decode_frame(frame_of(content))


def test_a_refusal_does_not_carry_the_value_that_it_refuses() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_frame(frame_of({"type": "hello", "protocol": [1], "client_id": "c", "token": "secret" * 1000}))
    assert "token" in caught.value.reason
    assert "secret" not in caught.value.reason


def test_nesting_as_deep_as_msgpack_allows_is_refused_and_does_not_crash() -> None:
    bottomless = msgpack.packb({"type": "work", "slice": 0})[:-1] + b"\x91" * 1000 + b"\x00"
    with pytest.raises(ProtocolError, match="malformed"):
        decode_frame(sealed(bottomless))


def test_a_control_message_may_not_be_huge() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_frame(frame_of({"type": "heartbeat", "sequence": 1, "ballast": bytes(MAX_CONTROL_BYTES)}))
    assert caught.value.code == "too_large"
    small = frame_of({"type": "heartbeat", "sequence": 1, "ballast": bytes(100)})
    assert decode_frame(small, 200) == Heartbeat(sequence=1)
    with pytest.raises(ProtocolError, match="allowed are 100"):
        decode_frame(small, 100)


def test_a_list_may_not_be_huge() -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        decode_frame(frame_of({"type": "heartbeat", "sequence": 1, "ballast": [0] * (MAX_ITEMS + 1)}))


def test_the_data_of_a_chunk_is_a_read_only_view_of_the_frame_on_an_eight_byte_boundary() -> None:
    frame = chunk_frame(1, 2, 3, b"12345678")
    chunk = decode_frame(frame)
    assert isinstance(chunk, Chunk)
    assert isinstance(chunk.data, memoryview)
    assert chunk.data.obj is frame
    assert chunk.data.readonly
    assert frame.index(b"12345678") % 8 == 0


def test_a_chunk_whose_length_lies_is_refused() -> None:
    body = chunk_frame(1, 2, 3, b"12345678")[:-CHECKSUM_BYTES]
    for torn in (body[:-1], body + b"9"):
        with pytest.raises(ProtocolError, match="malformed"):
            decode_frame(sealed(torn))


def test_frames_are_pinned() -> None:
    """Bytes on the wire: change them only together with the protocol version."""
    assert (
        encode_frame(Heartbeat(sequence=5)).hex()
        == "82a474797065a9686561727462656174a873657175656e63650543470cf5f6f33f84"
    )
    assert chunk_frame(1, 2, 8, b"abc").hex() == (
        "85d90474797065a56368756e6ba673747265616dce00000001a674656e736f72ce00000002"
        "d9066f6666736574cf0000000000000008a464617461c600000003616263f0fe1db93fc032d6"
    )


def test_models_do_not_share_state_through_defaults() -> None:
    hello = decode_frame(frame_of({"type": "hello", "protocol": [1], "client_id": "c"}))
    assert isinstance(hello, Hello)
    assert hello.tasks == ()
    assert not isinstance(hello, Work)


def test_a_small_frame_that_would_become_large_is_refused_before_it_has() -> None:
    bomb = frame_of({"type": "progress", "bomb": [[[]] * 1000] * 100})
    with pytest.raises(ProtocolError, match="too_large: a message with more than 5000 entries"):
        decode_frame(bomb, max_entries=5000)
    with pytest.raises(ProtocolError, match="malformed"):  # it has no fields of a progress
        decode_frame(bomb)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "hello\n2026-01-01 ERROR all is lost"},
        {"type": "ready", "tasks": {"a\n2026-01-01 ERROR all is lost": 1}},
        {"type": ["\n"]},
    ],
)
def test_a_refusal_does_not_let_a_peer_write_a_line_of_the_log(content: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode_frame(frame_of(content))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_free_form_value_holds_what_json_can_say(number: float) -> None:
    fields: dict[str, Any] = {
        "type": "work",
        "run_id": "r",
        "round": 1,
        "version": 0,
        "target_rounds": 1,
        "plan": "0",
        "slice": {"a": [{"b": number}]},
        "evaluate": True,
        "stream": 1,
        "tensors": [],
    }
    with pytest.raises(ProtocolError, match="not finite"):
        decode_frame(frame_of(fields))
    decode_frame(frame_of({**fields, "slice": {"a": [{"b": 1.0}]}}))
