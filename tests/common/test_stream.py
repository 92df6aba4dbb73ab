from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.messages import Asset, Chunk, TensorHeader
from common.stream import AssetReceiver, MemorySink, StreamLimits, StreamReceiver, asset_frames, chunk_frames
from common.tensors import EncodedTensor, decode_tensor, encode_tensor, payload_checksum
from common.wire import decode_frame
from tests.common.wire_strategies import encoded

Stream = tuple[list[EncodedTensor], list[Chunk]]


def payload(tensor: EncodedTensor) -> bytes:
    return b"".join(tensor.parts)


def chunks(tensors: list[EncodedTensor], chunk_bytes: int, stream: int = 1) -> list[Chunk]:
    found = [decode_frame(frame) for frame in chunk_frames(stream, tensors, chunk_bytes)]
    assert all(isinstance(chunk, Chunk) for chunk in found)
    return [chunk for chunk in found if isinstance(chunk, Chunk)]


def receive(tensors: list[EncodedTensor], stream: list[Chunk]) -> tuple[StreamReceiver, MemorySink, list[int]]:
    headers = [tensor.header for tensor in tensors]
    sink = MemorySink(headers)
    receiver = StreamReceiver(1, headers, sink)
    completed = [index for chunk in stream for index in receiver.accept(chunk)]
    return receiver, sink, completed


def assert_same(tensors: list[EncodedTensor], sink: MemorySink) -> None:
    for index, tensor in enumerate(tensors):
        whole = decode_tensor(tensor.header, payload(tensor))
        assert decode_tensor(tensor.header, sink.payload(index)).tobytes() == whole.tobytes()


@st.composite
def cut_anywhere(draw: st.DrawFn) -> Stream:
    """Tensors, and their payloads cut at any places that the protocol allows."""
    tensors = draw(encoded())
    cut: list[Chunk] = []
    for index, tensor in enumerate(tensors):
        content = payload(tensor)
        inner = draw(st.sets(st.integers(1, max(1, (len(content) - 1) // 8)).map(lambda eighths: 8 * eighths)))
        places = sorted({0, len(content)} | {place for place in inner if place < len(content)})
        cut += [Chunk(stream=1, tensor=index, offset=a, data=content[a:b]) for a, b in pairwise(places)]
    return tensors, cut


@given(encoded(), st.integers(1, 40).map(lambda eighths: 8 * eighths))
def test_tensors_arrive_whole_whatever_the_chunk_size(tensors: list[EncodedTensor], chunk_bytes: int) -> None:
    stream = chunks(tensors, chunk_bytes)
    assert all(len(chunk.data) <= chunk_bytes for chunk in stream)
    receiver, sink, completed = receive(tensors, stream)
    assert receiver.complete
    assert completed == [index for index, tensor in enumerate(tensors) if tensor.header.nbytes]
    assert_same(tensors, sink)


@given(cut_anywhere())
def test_tensors_arrive_whole_however_the_payload_is_cut(drawn: Stream) -> None:
    tensors, stream = drawn
    receiver, sink, _ = receive(tensors, stream)
    assert receiver.complete
    assert_same(tensors, sink)


@given(cut_anywhere(), st.data())
def test_an_altered_byte_of_a_payload_is_refused(drawn: Stream, data: st.DataObject) -> None:
    """The frame's own checksum aside: a sender whose payload is not what its header says."""
    tensors, stream = drawn
    if not stream:
        return
    which = data.draw(st.integers(0, len(stream) - 1))
    altered = bytearray(stream[which].data)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    stream[which] = stream[which].model_copy(update={"data": bytes(altered)})
    with pytest.raises(ProtocolError) as caught:
        receive(tensors, stream)
    assert caught.value.code in {"checksum", "malformed", "non_finite"}


@given(cut_anywhere(), st.data())
def test_a_lost_repeated_or_swapped_chunk_never_completes_a_wrong_stream(drawn: Stream, data: st.DataObject) -> None:
    tensors, stream = drawn
    if not stream:
        return
    which = data.draw(st.integers(0, len(stream) - 1))
    lost = stream[:which] + stream[which + 1 :]
    repeated = stream[: which + 1] + stream[which:]
    for wrong in (lost, repeated):
        if wrong is lost and which == len(stream) - 1:
            # A missing end shows only as a stream that is not complete.
            assert not receive(tensors, wrong)[0].complete
            continue
        with pytest.raises(ProtocolError, match="out_of_order"):
            receive(tensors, wrong)
    if which:
        swapped = [*stream[: which - 1], stream[which], stream[which - 1], *stream[which + 1 :]]
        with pytest.raises(ProtocolError, match="out_of_order"):
            receive(tensors, swapped)


def two_rows() -> EncodedTensor:
    delta = np.zeros((50, 2), np.float32)
    delta[[3, 40]] = 1.0
    return encode_tensor("w@a", delta, allow_rows=True)


def test_no_chunk_is_taken_after_a_refused_one() -> None:
    tensors = [encode_tensor("w@a", np.ones(4, np.float32))]
    [good] = chunks(tensors, 64)
    receiver = StreamReceiver(1, [tensors[0].header], MemorySink([tensors[0].header]))
    with pytest.raises(ProtocolError):
        receiver.accept(good.model_copy(update={"offset": 8}))
    with pytest.raises(ProtocolError, match="out_of_order"):
        receiver.accept(good)
    assert not receiver.complete


@pytest.mark.parametrize("size", [0, 4, 12, 24])
def test_chunks_of_odd_length_are_refused(size: int) -> None:
    header = encode_tensor("w@a", np.ones(4, np.float32)).header
    receiver = StreamReceiver(1, [header], MemorySink([header]))
    with pytest.raises(ProtocolError, match="malformed"):
        receiver.accept(Chunk(stream=1, tensor=0, offset=0, data=bytes(size)))


def test_chunks_of_another_stream_are_refused() -> None:
    tensors = [encode_tensor("w@a", np.ones(4, np.float32))]
    with pytest.raises(ProtocolError, match="out_of_order"):
        receive(tensors, chunks(tensors, 64, stream=2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_unless_allowed(bad: float) -> None:
    tensors = [encode_tensor("w@a", np.array([1.0, bad, 2.0], np.float32))]
    stream = chunks(tensors, 8)
    with pytest.raises(ProtocolError) as caught:
        receive(tensors, stream)
    assert caught.value.code == "non_finite"
    receiver = StreamReceiver(1, [tensors[0].header], MemorySink([tensors[0].header]), finite=False)
    for chunk in stream:
        receiver.accept(chunk)
    assert receiver.complete


@pytest.mark.parametrize("chunk_bytes", [8, 16, 64])
@pytest.mark.parametrize("indices", [[3, 3, 7], [7, 3, 40], [3, 40, 20], [3, 40, 40], [3, 40, 50], [3, 7, 2**32 - 1]])
def test_row_indices_out_of_order_or_range_are_refused_across_chunks(indices: list[int], chunk_bytes: int) -> None:
    content = np.array([*indices, 0], "<u4").tobytes() + bytes(3 * 8)
    header = TensorHeader(
        slot="w@a", dtype="float32", shape=(50, 2), encoding="rows", rows=3,
        nbytes=len(content), checksum=payload_checksum([content]),
    )  # fmt: skip
    tensor = EncodedTensor(header, (memoryview(content),))
    with pytest.raises(ProtocolError, match="row ind"):
        receive([tensor], chunks([tensor], chunk_bytes))


def test_padding_after_the_row_indices_is_zero() -> None:
    content = np.array([3, 1], "<u4").tobytes() + bytes(8)
    header = TensorHeader(
        slot="w@a", dtype="float32", shape=(50, 2), encoding="rows", rows=1,
        nbytes=len(content), checksum=payload_checksum([content]),
    )  # fmt: skip
    tensor = EncodedTensor(header, (memoryview(content),))
    with pytest.raises(ProtocolError, match="padding"):
        receive([tensor], chunks([tensor], 64))


def test_held_and_empty_tensors_need_no_chunk() -> None:
    tensors = [
        encode_tensor("a@t", np.ones(4, np.float32)).as_held(),
        encode_tensor("b@t", np.ones((0, 4), np.float32)),
        two_rows(),
    ]
    stream = chunks(tensors, 64)
    assert {chunk.tensor for chunk in stream} == {2}
    assert receive(tensors, stream)[0].complete
    assert receive(tensors[:2], [])[0].complete


@pytest.mark.parametrize(
    "limits",
    [
        StreamLimits(max_tensors=1),
        StreamLimits(max_tensor_bytes=399),
        StreamLimits(max_total_bytes=50),
    ],
)
def test_what_is_too_large_is_refused_before_a_byte_is_stored(limits: StreamLimits) -> None:
    headers = [two_rows().header, encode_tensor("b@t", np.ones(16, np.float32)).header]
    StreamReceiver(1, headers, MemorySink(headers), StreamLimits(2, 400, 64 + 24))
    with pytest.raises(ProtocolError) as caught:
        StreamReceiver(1, headers, MemorySink(headers), limits)
    assert caught.value.code == "too_large"


def test_frames_are_built_one_at_a_time() -> None:
    array = np.zeros(4, np.float32)
    frames = chunk_frames(1, [encode_tensor("w@a", array)], 8)
    next(frames)
    array[2] = 1.0
    chunk = decode_frame(next(frames))
    assert isinstance(chunk, Chunk)
    assert bytes(chunk.data) == b"\x00\x00\x80\x3f\0\0\0\0"


@pytest.mark.parametrize("chunk_bytes", [0, -8, 4, 12])
def test_a_chunk_size_that_would_break_alignment_is_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="chunk_bytes"):
        list(chunk_frames(1, [], chunk_bytes))
    with pytest.raises(ValueError, match="chunk_bytes"):
        list(asset_frames(1, b"", chunk_bytes))


def asset_of(content: bytes) -> Asset:
    return Asset(name="tokenizer.json", sha256=hashlib.sha256(content).hexdigest(), nbytes=len(content), stream=3)


@given(st.binary(max_size=100), st.integers(1, 9).map(lambda eighths: 8 * eighths))
def test_assets_arrive_whole(content: bytes, chunk_bytes: int) -> None:
    receiver = AssetReceiver(asset_of(content))
    results = []
    for frame in asset_frames(3, content, chunk_bytes):
        chunk = decode_frame(frame)
        assert isinstance(chunk, Chunk)
        results.append(receiver.accept(chunk))
    assert receiver.complete
    assert receiver.content() == content
    assert results[-1:] == ([content] if content else [])
    assert not any(results[:-1])


def test_an_asset_that_is_altered_out_of_order_too_long_or_too_large_is_refused() -> None:
    asset = asset_of(b"12345678")
    for code, chunk in [
        ("checksum", Chunk(stream=3, tensor=0, offset=0, data=b"1234567x")),
        ("out_of_order", Chunk(stream=3, tensor=0, offset=8, data=b"1")),
        ("out_of_order", Chunk(stream=4, tensor=0, offset=0, data=b"1")),
        ("malformed", Chunk(stream=3, tensor=0, offset=0, data=b"123456789")),
        ("malformed", Chunk(stream=3, tensor=0, offset=0, data=b"")),
    ]:
        with pytest.raises(ProtocolError) as caught:
            AssetReceiver(asset).accept(chunk)
        assert caught.value.code == code
    with pytest.raises(ProtocolError, match="too_large"):
        AssetReceiver(asset, max_bytes=7)
    with pytest.raises(ProtocolError, match="not complete"):
        AssetReceiver(asset).content()
