"""The one place where torch tensors become wire tensors and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xxhash
from torch import Tensor

from common.messages import TensorHeader
from common.tensors import NUMPY_DTYPES, Array, EncodedTensor, decode_tensor, encode_rows, encode_tensor

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def dtype_name(tensor: Tensor) -> str:
    """The element type by the name that travels, such as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def array_of(tensor: Tensor) -> Array:
    """A CPU tensor's elements as a numpy array, a view where the tensor is on the CPU (bfloat16 as uint16)."""
    plain = tensor.detach().cpu()
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.uint16).numpy()
    return plain.numpy()


def tensor_of(array: Array, dtype: str) -> Tensor:
    """The tensor of a numpy array, sharing its memory when that is writable (bfloat16 from uint16)."""
    if array.dtype != NUMPY_DTYPES[dtype]:
        raise ValueError(f"an array of {array.dtype} does not hold elements of {dtype}")
    writable = array if array.flags.writeable else np.array(array)
    tensor = torch.from_numpy(writable)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def encode(slot: str, tensor: Tensor, *, allow_rows: bool = False) -> EncodedTensor:
    """`common.tensors.encode_tensor` for a torch tensor; views of its memory, no copies on the CPU.

    A sparse tensor (coalesced, one sparse dimension) is laid out from its rows, into the same bytes as the dense one.
    """
    if tensor.is_sparse:
        rows = array_of(tensor.indices()[0])
        values = array_of(tensor.values())
        if allow_rows:
            encoded = encode_rows(slot, rows, values, tuple(tensor.shape), dtype=dtype_name(tensor))
            if encoded is not None:
                return encoded
        tensor = tensor.to_dense()
    return encode_tensor(slot, array_of(tensor), allow_rows=allow_rows, dtype=dtype_name(tensor))


def decode(header: TensorHeader, payload: bytes | bytearray | memoryview) -> Tensor:
    """`common.tensors.decode_tensor` as a torch tensor; shares the payload's memory when that is writable and raw."""
    return tensor_of(decode_tensor(header, payload), header.dtype)


def fingerprint(values: Mapping[str, Tensor]) -> str:
    """A digest of named tensors: equal where names, types, shapes and all bits are. Not for security."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(values.items()):
        digest.update(repr((name, dtype_name(tensor), tuple(tensor.shape))).encode())
        digest.update(np.ascontiguousarray(array_of(tensor)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
