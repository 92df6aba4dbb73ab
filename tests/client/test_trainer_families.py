"""The trainer on the real families: every architecture, shared and separate plans, one step each."""

from __future__ import annotations

import threading

import pytest
import torch

from client.device import choose_device
from client.trainer import LocalResult, LocalTrainer, TaskData
from common.families.base import Family
from common.plan import SharingPlan
from common.selectors import is_adapter
from common.tasks import TaskSpec
from common.training import Position, TrainSettings
from tests.common.families.test_shared_bottom import census_family, census_rows
from tests.common.families.tiny import ENCODERS, TASKS, text_family, texts


def one_round(family: Family, data: dict[str, TaskData], plan: SharingPlan) -> LocalResult:
    slice_ = plan.slice(list(data))
    initial = family.initial_values(3)
    values = {slot.id: initial[slot.parameter] for slot in slice_.travelling}
    trainer = LocalTrainer(family, data, choose_device("cpu"))
    settings = TrainSettings(batch_size=3, learning_rate=1e-3)
    evaluations = trainer.evaluate(slice_, values, settings)
    assert set(evaluations) == set(data)
    result = trainer.train(slice_, values, settings, Position(1, 2), 1, "c", lambda _: None, threading.Event())
    assert result.deltas.keys() == {slot.id for slot in slice_.trainable}
    assert set(result.reports) == set(data)
    moved = {slot for slot, delta in result.deltas.items() if bool(delta.any())}
    assert {slot.id for slot in slice_.trainable if slot.spec.group == "head"} <= moved
    return result


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_every_encoder_trains_and_leaves_unseen_words_alone(encoder: str, separate: bool) -> None:
    family = text_family(encoder)
    rows = {task: family.encode(task, texts(task)) for task in ("sst2", "stsb")}
    blueprint = family.blueprint()
    plan = SharingPlan.separate(blueprint) if separate else SharingPlan.shared(blueprint)
    result = one_round(family, {task: TaskData(split, split) for task, split in rows.items()}, plan)
    tables = [slot for slot in result.deltas if "word_embeddings" in slot]
    assert len(tables) == (2 if separate else 1)
    for slot in tables:
        delta = result.deltas[slot].to_dense()
        used = torch.zeros(len(delta), dtype=torch.bool)
        for task, split in rows.items():
            if task in slot.split("@")[1]:
                used[split.collate(torch.arange(len(split)).numpy())["input_ids"].flatten()] = True
        assert not delta[~used].any()
        assert delta[used].any()
        assert (~used).sum() > used.sum()


def test_adapters_heads_and_pooler_are_all_that_changes_and_travels_up() -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    family = text_family("bert", lora={"rank": 2})
    rows = {task: family.encode(task, texts(task)) for task in ("sst2", "stsb")}
    plan = SharingPlan.shared(family.blueprint())
    result = one_round(family, {task: TaskData(split, split) for task, split in rows.items()}, plan)
    assert result.deltas.keys() == {
        slot.id
        for slot in plan.slice(list(rows)).slots
        if is_adapter(slot.parameter) or slot.spec.group in ("head", "pooler")
    }
    assert all(delta.any() for slot, delta in result.deltas.items() if "lora_B" in slot)


@pytest.mark.parametrize("pooling", ["mean", "first_last"])
def test_separate_pairs_train_beside_single_texts(pooling: str) -> None:
    cosine = TASKS["stsb"].model_dump() | {"loss": "cosine", "label_range": [0, 5]}
    tasks = {**TASKS, "stsb": TaskSpec.model_validate(cosine)}
    family = text_family("bert", tasks=tasks, pairs="separate", pooling=pooling, heads={"stsb": "cosine"})
    rows = {task: family.encode(task, texts(task)) for task in tasks}
    data = {task: TaskData(split, split) for task, split in rows.items()}
    one_round(family, data, SharingPlan.shared(family.blueprint()))


@pytest.mark.parametrize("kind", ["omoe", "mmoe"])
def test_experts_on_an_encoder_are_trained_and_their_gates_reported(kind: str) -> None:
    experts = {"kind": kind, "number": 3, "hidden": [6], "gate": {"balance": 0.1}}
    family = text_family("bert", experts=experts)
    rows = {task: family.encode(task, texts(task)) for task in ("sst2", "qqp")}
    plan = SharingPlan.shared(family.blueprint())
    result = one_round(family, {task: TaskData(split, split) for task, split in rows.items()}, plan)
    assert all(delta.any() for slot, delta in result.deltas.items() if slot.startswith(("experts.", "gate.")))
    for task, report in result.reports.items():
        ((gate, found),) = report.gates.items()
        assert gate == ("gate" if kind == "omoe" else task)
        assert found.experts == ("expert.0", "expert.1", "expert.2")
        assert sum(found.mass) == pytest.approx(5)


@pytest.mark.parametrize("separate", [False, True])
def test_the_tabular_family_trains(separate: bool) -> None:
    family = census_family()
    data = {
        task: TaskData(split, split)
        for task in ("income", "hours")
        if (split := family.encode(task, census_rows(task)))
    }
    blueprint = family.blueprint()
    one_round(family, data, SharingPlan.separate(blueprint) if separate else SharingPlan.shared(blueprint))
