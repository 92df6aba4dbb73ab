"""What one client has of the model, as far as its connection knows: nothing of it is sent again. Pure.

Only tensors of the client's own slice are looked up, so all that a client learns by a *held* is that it has what it
would have got.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.tensors import EncodedTensor
from common.value_key import ValueKey


class Holdings:
    """The values of the last work that was sent completely; before there is one, those on the client's disk."""

    def __init__(self) -> None:
        self._on_disk: frozenset[ValueKey] = frozenset()
        self._sent: dict[str, int] = {}

    def listed(self, keys: frozenset[ValueKey]) -> None:
        """Take what the client says it has on its disk."""
        self._on_disk = keys

    def outgoing(self, tensors: Sequence[EncodedTensor]) -> list[EncodedTensor]:
        """The tensors of a work, without the payloads that the client has."""
        return [tensor.as_held() if self._has(tensor) else tensor for tensor in tensors]

    def delivered(self, tensors: Sequence[EncodedTensor]) -> None:
        """A work was sent completely: the client holds its tensors, and need not hold anything of before."""
        self._sent = {tensor.header.slot: tensor.header.checksum for tensor in tensors}
        self._on_disk = frozenset()

    def _has(self, tensor: EncodedTensor) -> bool:
        header = tensor.header
        return self._sent.get(header.slot) == header.checksum or (header.nbytes > 0 and header.key in self._on_disk)
