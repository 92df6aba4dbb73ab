"""What makes training fast does not change what is learned: the engine against a plain PyTorch loop.

The loop knows nothing of buckets as padding, compact tables or written-out layers: it takes the same examples in the
same order, pads each batch to a fixed length, runs transformers' own forward pass on whole tables, and steps with a
plain optimiser. Dropout is off, as masks come from another stream. Tolerances: 2e-6 where the update is a sum of
gradients (SGD at a rate of 0.1; a few roundings). AdamW divides by the gradient's own size, so an element whose
gradient is only rounding noise moves by up to the rate: the keys' biases, which the softmax does not see, are left out,
and elsewhere a tenth of the rate is allowed to single elements. In the mean over a slot it is 2e-7 for both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.batches import round_batches
from client.device import choose_device
from client.optimizer import decays
from client.trainer import LocalTrainer, TaskData
from common.families.base import Family
from common.families.encoded_text import EncodedText
from common.plan import SharingPlan, Slice
from common.seeds import derive_numpy
from common.training import Position, TrainSettings, learning_rate_factor, round_steps
from tests.common.families.tiny import text_family, texts

RATE = {"sgd": 0.1, "adamw": 1e-3}
TOLERANCE = {"sgd": 2e-6, "adamw": 1e-4}
MEAN_TOLERANCE = 2e-7
TASKS = ("sst2", "qqp", "stsb")
WORDS = ("good", "bad", "dull", "plot", "the", "film", "is", "not", "fine", "old", "jokes", "thin", "really")


def rows(family: Family, task: str) -> EncodedText:
    """Forty texts of 1 to 14 words."""
    drawn = derive_numpy(3, "texts", task)
    made = [" ".join(drawn.choice(WORDS, size=int(drawn.integers(1, 15)))) for _ in range(40)]
    split = family.encode(task, texts(task, made))
    assert isinstance(split, EncodedText)
    return split


def settings(optimizer: str, **more: object) -> TrainSettings:
    return TrainSettings.model_validate(
        {
            "local_epochs": 2,
            "batch_size": 6,
            "optimizer": optimizer,
            "learning_rate": RATE[optimizer],
            "head_learning_rate": 2.0,
            "max_grad_norm": 0.5,
            "threads": 1,
            **more,
        }
    )


def engine(
    family: Family, slice_: Slice, data: Mapping[str, TaskData], values: Mapping[str, Tensor], chosen: TrainSettings
) -> dict[str, Tensor]:
    trainer = LocalTrainer(family, data, choose_device("cpu"))
    result = trainer.train(slice_, values, chosen, Position(2, 3), 5, "c", lambda _: None, threading.Event())
    return {slot: delta.to_dense() for slot, delta in result.deltas.items()}


def plain_loop(
    family: Family, slice_: Slice, data: Mapping[str, TaskData], values: Mapping[str, Tensor], chosen: TrainSettings
) -> dict[str, Tensor]:
    model: Any = family.build(list(data))
    slots = {slot.parameter: slot for slot in slice_.slots}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[slots[name].id])
    groups = [
        {
            "params": [parameter],
            "weight_decay": chosen.weight_decay if decays(slots[name], chosen, slots.values()) else 0.0,
            "times": chosen.head_learning_rate if name.startswith("heads.") else 1.0,
        }
        for name, parameter in parameters.items()
    ]
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizer = kinds[chosen.optimizer](groups, lr=chosen.learning_rate, foreach=False)
    lengths = {task: own.train.lengths for task, own in data.items()}
    total, position = round_steps(chosen, {task: len(own.train) for task, own in data.items()}), Position(2, 3)
    model.train()
    for step, batch in enumerate(round_batches(lengths, chosen, position, 5, "c")):
        (task,) = batch.rows
        split = data[task].train
        inputs = padded(split.collate(batch.rows[task]), 32)
        encoded = model.encoder(**inputs).pooler_output
        logits = model.heads[task](encoded)
        labels = split.labels[torch.from_numpy(batch.rows[task])]
        loss = (
            functional.mse_loss(logits.squeeze(-1), labels)
            if family.tasks[task].kind == "regression"
            else functional.cross_entropy(logits, labels)
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        factor = learning_rate_factor(chosen, position, step, total)
        for group in optimizer.param_groups:
            group["lr"] = chosen.learning_rate * factor * group["times"]
        optimizer.step()
    return {slots[name].id: parameter.detach() - values[slots[name].id] for name, parameter in parameters.items()}


def padded(inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    return {name: functional.pad(tensor, (0, length - tensor.shape[1])) for name, tensor in inputs.items()}


def prepared(encoder: str = "bert") -> tuple[Family, Slice, dict[str, TaskData], dict[str, Tensor]]:
    family = text_family(encoder, dropout=0.0, encoder_dropout=0.0)
    data = {task: TaskData(rows(family, task)) for task in TASKS}
    slice_ = SharingPlan.shared(family.blueprint()).slice(TASKS)
    initial = family.initial_values(3)
    # Ten times the usual weights, so that every parameter gets gradients far above rounding.
    return family, slice_, data, {s.id: initial[s.parameter] * (10 if len(s.shape) > 1 else 1) for s in slice_.slots}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_engine_learns_what_a_plain_loop_learns(optimizer: str, buckets: bool) -> None:
    family, slice_, data, values = prepared()
    chosen = settings(optimizer, length_buckets=buckets)
    found, wanted = (run(family, slice_, data, values, chosen) for run in (engine, plain_loop))
    assert found.keys() == wanted.keys()
    for slot, delta in wanted.items():
        if "attention.self.key.bias" in slot:
            continue
        assert float((found[slot] - delta).abs().max()) <= TOLERANCE[optimizer], slot
        assert float((found[slot] - delta).abs().mean()) <= MEAN_TOLERANCE, slot
        assert float(delta.abs().max()) > 20 * TOLERANCE[optimizer], slot


@pytest.mark.parametrize("encoder", ["bert", "roberta", "deberta-v2", "distilbert", "albert"])
def test_a_compact_vocabulary_learns_what_the_whole_table_learns_bit_for_bit(encoder: str) -> None:
    """Without a limit on the gradient's norm, whose sum a shorter table groups otherwise."""
    family, slice_, data, values = prepared(encoder)
    chosen = settings("adamw", max_grad_norm=None, local_epochs=None, local_steps=8)
    compact, whole = (
        engine(family, slice_, data, values, chosen.model_copy(update={"compact_vocabulary": on}))
        for on in (True, False)
    )
    assert compact.keys() == whole.keys()
    for slot, delta in whole.items():
        assert torch.equal(compact[slot], delta), slot


def test_a_compact_vocabulary_limits_the_gradient_as_the_whole_table_does() -> None:
    family, slice_, data, values = prepared()
    chosen = settings("sgd", max_grad_norm=0.01)
    compact, whole = (
        engine(family, slice_, data, values, chosen.model_copy(update={"compact_vocabulary": on}))
        for on in (True, False)
    )
    for slot, delta in whole.items():
        torch.testing.assert_close(compact[slot], delta, rtol=1e-4, atol=1e-8)


def test_values_received_are_left_as_they_are() -> None:
    family, slice_, data, values = prepared()
    before = {slot: value.clone() for slot, value in values.items()}
    engine(family, slice_, data, values, settings("adamw"))
    assert all(torch.equal(values[slot], value) for slot, value in before.items())


def test_a_round_after_another_has_its_own_table() -> None:
    family, slice_, data, values = prepared()
    trainer, chosen = (
        LocalTrainer(family, data, choose_device("cpu")),
        settings("adamw", local_epochs=None, local_steps=2),
    )

    def train(round_: int) -> dict[str, Tensor]:
        result = trainer.train(slice_, values, chosen, Position(round_, 3), 5, "c", lambda _: None, threading.Event())
        trainer.evaluate(slice_, values, chosen)
        return {slot: delta.to_dense() for slot, delta in result.deltas.items()}

    first, second, again = train(1), train(2), train(1)
    assert all(torch.equal(first[slot], again[slot]) for slot in first)
    (table,) = [slot for slot in first if "word_embeddings" in slot]
    assert not torch.equal(first[table], second[table])
    assert np.isfinite(first[table].numpy()).all()
