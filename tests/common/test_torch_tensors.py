from __future__ import annotations

import pytest
import torch

from common.torch_tensors import TORCH_DTYPES, array_of, decode, dtype_name, encode, fingerprint, tensor_of


@pytest.mark.parametrize("name", sorted(TORCH_DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 0)])
def test_every_dtype_comes_back_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 3).to(TORCH_DTYPES[name])
    encoded = encode("w@a", tensor)
    assert encoded.header.dtype == name == dtype_name(tensor)
    decoded = decode(encoded.header, b"".join(encoded.parts))
    assert decoded.dtype is tensor.dtype
    assert torch.equal(decoded, tensor)


def test_encoding_takes_a_view_of_a_parameter() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    encoded = encode("w@a", parameter)
    parameter.data[0] = 1.0
    assert bytes(encoded.parts[0][:4]) == b"\x00\x00\x80\x3f"


def test_a_read_only_payload_is_copied_and_a_writable_one_is_not() -> None:
    encoded = encode("w@a", torch.ones(4))
    content = bytearray(b"".join(encoded.parts))
    decode(encoded.header, content)[0] = 2.0
    assert content[:4] == b"\x00\x00\x00\x40"
    frozen = bytes(content)
    decode(encoded.header, frozen)[0] = 3.0
    assert frozen == content


def test_only_touched_rows_of_a_tensor_travel() -> None:
    delta = torch.zeros(100, 8)
    delta[5] = torch.arange(8.0)
    encoded = encode("w@a", delta, allow_rows=True)
    assert encoded.header.rows == 1
    assert torch.equal(decode(encoded.header, b"".join(encoded.parts)), delta)


def test_an_array_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        tensor_of(array_of(torch.ones(2)), "float64")


def test_a_fingerprint_tells_values_names_types_and_shapes_apart() -> None:
    values = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0), "c": torch.ones(2, dtype=torch.bfloat16)}
    same = {name: value.clone() for name, value in reversed(values.items())}
    assert fingerprint(values) == fingerprint(same)
    assert fingerprint({"a": values["a"].t().contiguous().t()}) == fingerprint({"a": values["a"]})
    others = [
        {**values, "a": values["a"].reshape(3, 2)},
        {**values, "a": values["a"].to(torch.int32)},
        {**values, "b": torch.tensor(1.0000001)},
        {"a": values["a"], "b": values["b"]},
        {**values, "d": values["b"]},
    ]
    assert len({fingerprint(values), *map(fingerprint, others)}) == 6
