"""Compact tables against whole ones, with the optimisers that clients use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

from client.device import choose_device
from client.slot_model import SlotModel
from client.trainer import TaskData
from client.vocabulary import CompactTable, CompactVocabulary, compactable
from common.families.encoded_text import EncodedText
from common.plan import SharingPlan
from common.torch_tensors import decode, encode
from tests.client.tiny_family import TinyFamily, shared_slice, tiny_data
from tests.common.families.tiny import text_family, texts

#: A width that is a multiple of 16, as those of real tables are: what is left over from whole vectors of elements is
#: rounded otherwise by the optimisers' kernels.
ROWS, WIDTH = 40, 16
BATCHES = st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12), min_size=1, max_size=12)
OPTIMIZERS: dict[str, Callable[[nn.Parameter], Optimizer]] = {
    "adamw": lambda parameter: AdamW([parameter], lr=0.1, weight_decay=0.0, fused=True),
    "amsgrad": lambda parameter: AdamW([parameter], lr=0.1, weight_decay=0.0, amsgrad=True),
    "sgd": lambda parameter: SGD([parameter], lr=0.1, fused=True),
    "momentum": lambda parameter: SGD([parameter], lr=0.1, momentum=0.9, fused=True),
}


def start() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))


def step(optimizer: Optimizer, parameter: nn.Parameter, ids: Tensor, number: int) -> None:
    pull = torch.randn(len(ids), WIDTH, generator=torch.Generator().manual_seed(number))
    parameter.grad = None
    torch.autograd.backward((functional.embedding(ids, parameter, padding_idx=0) * pull).sum())
    optimizer.step()


def compact_delta(batches: list[list[int]], kind: str) -> Tensor:
    parameter = nn.Parameter(start())
    table = CompactTable("table", parameter, start(), padding_id=0)
    optimizer = OPTIMIZERS[kind](parameter)
    table.serve(optimizer)
    for number, ids in enumerate(batches):
        table.admit(np.array(ids))
        step(optimizer, parameter, table.rows_of(torch.tensor(ids)), number)
    return table.delta()


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@given(batches=BATCHES)
@settings(max_examples=15)
def test_a_compact_table_moves_as_the_whole_one_bit_for_bit(kind: str, batches: list[list[int]]) -> None:
    whole = nn.Parameter(start())
    optimizer = OPTIMIZERS[kind](whole)
    for number, ids in enumerate(batches):
        step(optimizer, whole, torch.tensor(ids), number)
    delta = compact_delta(batches, kind)
    assert torch.equal(delta.to_dense(), whole.detach() - start())
    assert set(delta.indices()[0].tolist()) == {0, *(i for ids in batches for i in ids)}


@given(batches=BATCHES)
@settings(max_examples=15)
def test_an_update_by_rows_is_the_same_bytes_as_that_of_the_whole_table(batches: list[list[int]]) -> None:
    delta = compact_delta(batches, "adamw")
    by_rows, whole = (encode("slot", one, allow_rows=True) for one in (delta, delta.to_dense()))
    assert by_rows.header == whole.header
    payload = b"".join(by_rows.parts)
    assert payload == b"".join(whole.parts)
    assert torch.equal(decode(by_rows.header, payload), delta.to_dense())


def test_ids_up_to_the_padding_id_keep_their_places() -> None:
    table = CompactTable("table", nn.Parameter(start()), start(), padding_id=3)
    table.admit(np.array([30, 7, 2]))
    assert table.rows_of(torch.tensor([0, 1, 2, 3, 7, 30])).tolist() == [0, 1, 2, 3, 4, 5]


def test_what_was_received_is_not_written_to() -> None:
    parameter, received = nn.Parameter(start()), start()
    parameter.data = received
    table = CompactTable("table", parameter, received, padding_id=0)
    optimizer = OPTIMIZERS["adamw"](parameter)
    table.serve(optimizer)
    table.admit(np.arange(ROWS))
    step(optimizer, parameter, table.rows_of(torch.arange(ROWS)), 1)
    assert torch.equal(received, start())
    assert len(parameter) == ROWS


def test_each_task_reads_the_table_of_its_slot() -> None:
    family = text_family()
    data = {task: TaskData(family.encode(task, texts(task))) for task in ("sst2", "qqp")}
    tasks = list(data)
    for plan, slots in ((SharingPlan.shared(family.blueprint()), 1), (SharingPlan.separate(family.blueprint()), 2)):
        model = SlotModel(family, plan.slice(tasks), tasks, choose_device("cpu"))
        found = compactable(family, model, data, tasks)
        assert set(found) == set(tasks)
        assert len({slot.id for slot in found.values()}) == slots
        # Where only the other task is trained, a table of one's own is none that changes.
        alone = compactable(family, model, data, ["sst2"])
        assert set(alone) == (set(tasks) if slots == 1 else {"sst2"})


def test_a_family_that_names_no_table_has_none() -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")
    model = SlotModel(family, slice_, ["mood"], choose_device("cpu"))
    assert compactable(family, model, tiny_data({"mood": 8}), ["mood"]) == {}


def test_a_frozen_table_and_one_that_lives_on_the_client_stay_whole() -> None:
    family = text_family()
    data = {"sst2": TaskData(family.encode("sst2", texts("sst2")))}
    plan = SharingPlan.shared(family.blueprint())
    (table,) = plan.of(family.token_rows[0])
    for changed in (plan.freeze([table.id]), plan.reside([table.id], "client")):
        model = SlotModel(family, changed.slice(["sst2"]), ["sst2"], choose_device("cpu"))
        assert compactable(family, model, data, ["sst2"]) == {}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_table_that_decays_stays_whole_and_is_copied(decay: float) -> None:
    family = text_family()
    data = {"sst2": TaskData(family.encode("sst2", texts("sst2")))}
    model = SlotModel(family, SharingPlan.shared(family.blueprint()).slice(["sst2"]), ["sst2"], choose_device("cpu"))
    values = {slot.id: torch.zeros(slot.shape) for slot in model.slots.values()}
    slots = compactable(family, model, data, ["sst2"])
    model.load(values, training=True, in_place={slot.id for slot in slots.values()})
    vocabulary = CompactVocabulary(slots, model, values, data)
    parameter = model.parameter(slots["sst2"].id)
    assert parameter.data_ptr() == values[slots["sst2"].id].data_ptr()
    vocabulary.begin(AdamW([{"params": [parameter], "weight_decay": decay}], lr=0.1))
    assert parameter.data_ptr() != values[slots["sst2"].id].data_ptr()
    split, seen = data["sst2"].train, vocabulary.data()["sst2"].train
    assert isinstance(split, EncodedText)
    same = torch.equal(seen.collate(np.array([0]))["input_ids"], split.collate(np.array([0]))["input_ids"])
    assert same == bool(decay)
    assert bool(vocabulary.tables) == (not decay)
    assert torch.equal(seen.labels, split.labels)
    assert len(seen) == len(split)
