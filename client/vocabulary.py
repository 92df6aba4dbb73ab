"""A client's compact vocabulary: of an embedding table only the rows that a round's batches touch take part.

A row joins when a batch holds its token for the first time: the parameter, its gradient and the optimiser's state
grow by it. Until then a dense table's row has a zero gradient and, as it is not decayed, zero state and no movement; so
leaving it out changes nothing (up to the order of additions in the gradient's norm). A row that has joined stays, as
its momentum moves it on in steps without its token.

Used for the parameters that the family names (`Family.token_rows`), where all of this holds; see `compact_tables`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from client.batches import Batch
from client.slot_model import SlotModel
from common.families.encoded_text import EncodedText
from common.plan import Slot

if TYPE_CHECKING:
    from client.trainer import TaskData
    from common.families.base import Family


class CompactTable:
    """One slot's rows that have joined, in the order in which they did.

    The ids up to the padding id join at once, in their order: an encoder may compare ids with it, so it keeps its
    place.

    Args:
        slot_id: the slot.
        parameter: holds the slot in the model; its data is replaced by the rows that have joined.
        received: ``(V, H)``, the slot's value at the start of the round, on the CPU; only read.
        padding_id: the id that fills up batches.
    """

    def __init__(self, slot_id: str, parameter: nn.Parameter, received: Tensor, padding_id: int) -> None:
        self.slot_id = slot_id
        self._parameter = parameter
        self._received = received
        self._row_of = np.full(len(received), -1, dtype=np.int64)
        self._ids = np.empty(0, dtype=np.int64)
        self._buffers: dict[str, Tensor] = {}
        self._capacity = 0
        self._optimizer: Optimizer | None = None
        parameter.grad = None
        parameter.data = parameter.data[:0]
        self._join(np.arange(padding_id + 1))

    def serve(self, optimizer: Optimizer) -> None:
        """Keep the state that this optimiser has for the parameter in step with it."""
        self._optimizer = optimizer

    def admit(self, ids: np.ndarray) -> None:
        """Let the rows of these tokens join; call it between two steps, while no graph holds the parameter."""
        new = ids[self._row_of[ids] < 0]
        if len(new):
            self._join(np.unique(new))

    def rows_of(self, ids: Tensor) -> Tensor:
        """Token ids as rows of the parameter; all of them have joined."""
        return torch.from_numpy(self._row_of[ids.numpy()])

    def received_rows(self) -> Tensor:
        """The received values of the rows that have joined, as the parameter holds them."""
        return self._received[torch.from_numpy(self._ids)].to(self._parameter.device)

    def delta(self) -> Tensor:
        """Trained minus received, ``(V, H)`` float32 on the CPU: sparse, its rows in the order of their ids."""
        order = np.argsort(self._ids)
        ids = torch.from_numpy(self._ids[order])
        values = self._parameter.detach().to("cpu", torch.float32)[torch.from_numpy(order)]
        values -= self._received[ids]
        return torch.sparse_coo_tensor(
            ids.unsqueeze(0), values, tuple(self._received.shape), is_coalesced=True, check_invariants=False
        )

    def _join(self, ids: np.ndarray) -> None:
        before, after = len(self._ids), len(self._ids) + len(ids)
        self._row_of[ids] = np.arange(before, after)
        self._ids = np.concatenate([self._ids, ids])
        if after > self._capacity:
            self._capacity = min(max(2 * after, 1024), len(self._received))
            self._buffers.clear()  # each is made again, larger, from what the parameter and the optimiser hold
        parameter = self._parameter
        parameter.grad = None  # of the step before
        state = self._optimizer.state[parameter] if self._optimizer is not None else {}
        for name, value in list(state.items()):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = self._grown(name, value, after)
        parameter.data = self._grown("", parameter.data, after)
        parameter.data[before:] = self._received[torch.from_numpy(ids)].to(parameter.device)

    def _grown(self, name: str, value: Tensor, rows: int) -> Tensor:
        """The first `rows` rows of a buffer that begins with `value` and goes on with zeros."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.data_ptr() != value.data_ptr():
            buffer = self._buffers[name] = value.new_zeros((self._capacity, *self._received.shape[1:]))
            buffer[: len(value)] = value
        return buffer[:rows]


class CompactVocabulary:
    """The compact tables of one round, and the client's rows as they read them.

    Args:
        slots: from `compactable`; empty where all tables stay whole.
        model: loaded for training, these slots perhaps sharing memory with `received`.
        received: slot id to value.
        data: the client's rows.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        model: SlotModel,
        received: Mapping[str, Tensor],
        data: Mapping[str, TaskData],
    ) -> None:
        self._slots = dict(slots)
        self._model = model
        self._received = received
        self._data = data
        self._tables: dict[str, CompactTable] = {}

    @property
    def tables(self) -> Mapping[str, CompactTable]:
        """Slot id to table."""
        return self._tables

    def data(self) -> dict[str, TaskData]:
        """The client's rows, with rows of the tables in the place of token ids once the tables are made."""
        return {
            task: replace(own, train=CompactSplit(own.train, self, self._slots[task].id))
            if task in self._slots and isinstance(own.train, EncodedText)
            else own
            for task, own in self._data.items()
        }

    def begin(self, optimizer: Optimizer) -> None:
        """Make the tables that this optimiser is to train; those that it decays stay whole, as all rows move."""
        decayed = {
            id(parameter)
            for group in optimizer.param_groups
            if group.get("weight_decay")
            for parameter in group["params"]
        }
        for task, slot in self._slots.items():
            parameter, split = self._model.parameter(slot.id), self._data[task].train
            if slot.id in self._tables:
                self._tables[slot.id].serve(optimizer)
            elif id(parameter) in decayed:
                parameter.data = parameter.data.clone()
            elif isinstance(split, EncodedText):
                self._tables[slot.id] = CompactTable(slot.id, parameter, self._received[slot.id], split.pad_id)
                self._tables[slot.id].serve(optimizer)

    def admit(self, batch: Batch) -> None:
        """Let the rows of a step's tokens join, before its forward pass."""
        for task, rows in batch.rows.items():
            split, slot = self._data[task].train, self._slots.get(task)
            if slot is not None and slot.id in self._tables and isinstance(split, EncodedText):
                self._tables[slot.id].admit(split.tokens(rows))


class CompactSplit:
    """Training rows whose batches hold rows of a compact table; see `EncodedSplit`."""

    def __init__(self, split: EncodedText, vocabulary: CompactVocabulary, slot_id: str) -> None:
        self._split = split
        self._vocabulary = vocabulary
        self._slot_id = slot_id

    @property
    def labels(self) -> Tensor:
        """(N,), as in the split."""
        return self._split.labels

    @property
    def lengths(self) -> np.ndarray:
        """(N,), as in the split."""
        return self._split.lengths

    @property
    def weights(self) -> Tensor | None:
        """(N,), as in the split."""
        return self._split.weights

    def __len__(self) -> int:
        return len(self._split)

    @property
    def text(self) -> EncodedText:
        """The split itself, whose batches hold token ids."""
        return self._split

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        """As in the split, with rows of the table for token ids."""
        return self.by_rows(self._split.collate(indices))

    def by_rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the split's texts, perhaps joined with others that read the same table, with rows for ids."""
        table = self._vocabulary.tables.get(self._slot_id)
        return batch if table is None else {**batch, "input_ids": table.rows_of(batch["input_ids"])}


def compactable(
    family: Family, model: SlotModel, data: Mapping[str, TaskData], tasks: Iterable[str]
) -> dict[str, Slot]:
    """Task to the slot whose rows its tokens choose, where the slot may be kept compact.

    It may where these tasks train it, it travels (a client's own slots are kept whole), and all that read it here
    read rows by the token ids of their batches.

    Args:
        family: names the parameters.
        model: bound to the slice.
        data: the client's rows.
        tasks: those about to be trained.
    """
    found: dict[str, Slot] = {}
    refused: set[str] = set()
    for task in model.tasks:
        slots = [slot for slot in model.slots.values() if task in slot.tasks and slot.parameter in family.token_rows]
        for slot in slots:
            by_tokens = isinstance(data[task].train, EncodedText) and len(slots) == 1
            if by_tokens and slot.residence == "server" and slot.trained_by & set(tasks):
                found[task] = slot
            else:
                refused.add(slot.id)
    return {task: slot for task, slot in found.items() if slot.id not in refused}
