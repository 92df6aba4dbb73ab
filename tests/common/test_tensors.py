from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError, UpdateRejected
from common.messages import TensorHeader
from common.tensors import (
    NUMPY_DTYPES,
    Array,
    EncodedTensor,
    all_finite,
    decode_rows,
    decode_tensor,
    encode_tensor,
    payload_checksum,
    require_match,
)
from tests.common.wire_strategies import arrays


def payload(tensor: EncodedTensor) -> bytes:
    return b"".join(tensor.parts)


@given(arrays(finite_only=False), st.booleans())
def test_a_tensor_comes_back_bit_for_bit(drawn: tuple[Array, str], allow_rows: bool) -> None:
    array, dtype = drawn
    tensor = encode_tensor("w@a", array, allow_rows=allow_rows, dtype=dtype)
    decoded = decode_tensor(tensor.header, payload(tensor))
    assert decoded.shape == array.shape
    assert decoded.dtype == array.dtype
    assert decoded.tobytes() == array.tobytes()


@given(arrays(), st.booleans())
def test_the_header_describes_the_payload(drawn: tuple[Array, str], allow_rows: bool) -> None:
    tensor = encode_tensor("w@a", drawn[0], allow_rows=allow_rows, dtype=drawn[1])
    content = payload(tensor)
    assert tensor.header.nbytes == len(content)
    assert tensor.header.checksum == payload_checksum([content])
    assert TensorHeader.model_validate(tensor.header.model_dump()) == tensor.header


@given(arrays())
def test_rows_are_used_only_where_they_are_smaller(drawn: tuple[Array, str]) -> None:
    array, dtype = drawn
    tensor = encode_tensor("w@a", array, allow_rows=True, dtype=dtype)
    assert tensor.header.nbytes <= array.nbytes
    if tensor.header.encoding == "rows":
        assert tensor.header.nbytes <= 0.9 * array.nbytes


def test_untouched_embedding_rows_cost_nothing() -> None:
    delta = np.zeros((1000, 16), np.float32)
    delta[[3, 500, 999]] = 1.5
    tensor = encode_tensor("embedding@a", delta, allow_rows=True)
    assert tensor.header.nbytes == 16 + 3 * 64
    indices, values = decode_rows(tensor.header, payload(tensor))
    assert indices.tolist() == [3, 500, 999]
    assert (values == 1.5).all()


def test_a_row_of_negative_zeros_is_kept() -> None:
    delta = np.zeros((100, 4), np.float32)
    delta[7] = -0.0
    tensor = encode_tensor("w@a", delta, allow_rows=True)
    assert tensor.header.rows == 1
    assert np.signbit(decode_tensor(tensor.header, payload(tensor))[7]).all()


def test_raw_is_encoded_and_decoded_without_copies() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = encode_tensor("w@a", array)
    assert np.shares_memory(np.frombuffer(tensor.parts[0], np.float32), array)
    received = bytearray(payload(tensor))
    assert np.shares_memory(decode_tensor(tensor.header, received), np.frombuffer(received, np.uint8))


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[:, 1:3]])
def test_an_array_that_is_not_contiguous_is_encoded_right(view: tuple[slice, ...]) -> None:
    array = np.arange(24, dtype=np.int64).reshape(4, 6)[view]
    tensor = encode_tensor("w@a", array)
    assert (decode_tensor(tensor.header, payload(tensor)) == array).all()


def test_big_endian_elements_travel_little_endian() -> None:
    tensor = encode_tensor("w@a", np.array([1, 2], ">i4"))
    assert payload(tensor) == b"\x01\0\0\0\x02\0\0\0"


def test_held_tensors_have_no_payload() -> None:
    held = encode_tensor("w@a", np.ones(3, np.float32)).as_held()
    assert held.header.held
    assert held.parts == ()


@pytest.mark.parametrize("dtype", [None, "complex128", "float32"])
def test_other_element_types_do_not_travel(dtype: str | None) -> None:
    with pytest.raises(ValueError, match="do not travel"):
        encode_tensor("w@a", np.ones(2, np.complex128), dtype=dtype)


@pytest.mark.parametrize("indices", [[5, 5], [5, 4], [0, 10]])
def test_row_indices_that_repeat_fall_or_leave_the_tensor_are_refused(indices: list[int]) -> None:
    content = np.array(indices, "<u4").tobytes() + bytes(2 * 8)
    header = TensorHeader(slot="w@a", dtype="float64", shape=(10, 1), encoding="rows", rows=2, nbytes=24, checksum=0)
    with pytest.raises(ProtocolError, match="row ind"):
        decode_tensor(header, content)


def test_a_payload_of_the_wrong_length_is_refused() -> None:
    tensor = encode_tensor("w@a", np.ones(3, np.float32))
    with pytest.raises(ProtocolError, match="bytes of payload"):
        decode_tensor(tensor.header, payload(tensor)[:-1])


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [("float32", np.float32("nan")), ("float64", np.float64("-inf")), ("float16", np.float16("inf"))],
)
def test_a_number_that_is_not_finite_is_found(dtype: str, bad: np.generic) -> None:
    array = np.ones(5, NUMPY_DTYPES[dtype])
    assert all_finite(dtype, array.tobytes())
    array[3] = bad
    assert not all_finite(dtype, array.tobytes())


@pytest.mark.parametrize(("bits", "finite"), [(0x7F7F, True), (0x7F80, False), (0xFF80, False), (0x7FC0, False)])
def test_bfloat16_infinities_are_found(bits: int, finite: bool) -> None:
    assert all_finite("bfloat16", np.array([1, bits], "<u2").tobytes()) is finite


def test_integers_are_finite() -> None:
    assert all_finite("int64", b"\xff" * 16)
    assert all_finite("float32", b"")


def test_a_tensor_that_is_not_what_its_slot_holds_is_refused_by_name() -> None:
    header = encode_tensor("w@a", np.ones((2, 3), np.float32)).header
    require_match(header, (2, 3), "float32")
    for shape, dtype, code in [((3, 2), "float32", "wrong_shape"), ((2, 3), "float16", "wrong_dtype")]:
        with pytest.raises(UpdateRejected) as caught:
            require_match(header, shape, dtype)
        assert caught.value.code == code
