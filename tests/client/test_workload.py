"""The real workload: rows, family and trainer behind the session's interface."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.evaluate import evaluate_tasks
from client.failures import TrainingCancelled, TrainingDiverged
from client.local_workload import LocalWorkload, contribution_of
from client.tally import GateReport, TaskReport
from client.workload import Received, WorkCancelled, WorkDeclined
from common.errors import ConfigError
from common.families import build_family
from common.families.base import Family
from common.messages import Welcome, Work
from common.metrics import Evaluation
from common.plan import SharingPlan, Slice
from common.tensors import decode_tensor
from common.torch_tensors import encode
from common.training import TrainSettings
from server.config import resolve_config

HERE = Path(__file__).parent
CONFIG: dict[str, Any] = {
    "model": {
        "family": "transformer",
        "encoder": {
            "config": {
                "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16, "max_position_embeddings": 32,
            },
            "tokenizer": "synthetic-words",
        },
        "max_length": 16,
    },
    "tasks": {
        "sst2": {"use": "sst2", "data": {"synthetic": "sst2", "train": 40, "validation": 20}},
        "stsb": {"use": "stsb", "data": {"synthetic": "stsb", "train": 40, "validation": 20}},
    },
    "training": {"local_steps": 2, "batch_size": 4, "learning_rate": 1e-3},
}  # fmt: skip


class Given:
    """What a server would send."""

    def __init__(self, sync: str = "slice", frozen: str = "") -> None:
        loaded = resolve_config(CONFIG, "test", HERE)
        self.family: Family = build_family(loaded.config.model, loaded.specs, base_dir=HERE)
        plan = SharingPlan.shared(self.family.blueprint())
        self.plan = plan.freeze(slot.id for slot in plan.slots if slot.spec.group == frozen)
        self.slice_ = self.plan.slice(loaded.specs if sync == "full" else {"sst2"})
        self.training = loaded.config.training.model_dump(mode="json")
        specs = {name: spec.model_dump(mode="json") for name, spec in loaded.specs.items()}
        self.welcome = Welcome(
            protocol=1, run_id="run", client_id="c", tasks=("sst2",), seed=3, target_rounds=2, heartbeat_s=1.0,
            silence_s=4.0, chunk_bytes=4096, specs=specs if sync == "full" else {"sst2": specs["sst2"]},
            family=self.family.describe(),
        )  # fmt: skip
        values = self.family.initial_values(3)
        encoded = [encode(slot.id, values[slot.parameter]) for slot in self.slice_.travelling]
        self.received: Received = {
            tensor.header.slot: (tensor.header, memoryview(bytearray(b"".join(bytes(part) for part in tensor.parts))))
            for tensor in encoded
        }
        self.work = Work(
            run_id="run", round=1, version=0, target_rounds=2, plan=self.plan.digest, slice=self.slice_.to_dict(),
            evaluate=True, training=self.training, stream=1, tensors=tuple(tensor.header for tensor in encoded),
        )  # fmt: skip

    def prepared(self, sync: Any = "slice") -> LocalWorkload:  # noqa: ANN401  # a literal
        workload = LocalWorkload(None, "cpu", sync=sync, threads=1)
        report = workload.prepare(self.welcome, self.family.assets())
        assert (report["sst2"].train, report["sst2"].validation) == (40, 20)
        assert "synthetic" in report["sst2"].source
        return workload


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Training sets the number of threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _progress(done: int, total: int, loss: float) -> None:
    assert 0 <= done <= total
    assert np.isfinite(loss)


def test_evaluate_and_train() -> None:
    given = Given()
    workload = given.prepared()
    cancelled = threading.Event()
    before = {slot: hashlib.sha256(payload).digest() for slot, (_, payload) in given.received.items()}
    results = workload.evaluate(given.work, given.slice_, given.received, cancelled)
    assert results["sst2"].examples == 20
    assert 0 <= results["sst2"].metrics["accuracy"] <= 1
    update = workload.train(given.work, given.slice_, given.received, _progress, cancelled)
    assert update.tasks["sst2"].num_examples == 8
    assert {tensor.header.slot for tensor in update.tensors} == {slot.id for slot in given.slice_.trainable}
    assert any(decode(tensor).any() for tensor in update.tensors)
    after = {slot: hashlib.sha256(payload).digest() for slot, (_, payload) in given.received.items()}
    assert after == before, "what is held for the next round is not written to"
    again = workload.train(given.work, given.slice_, given.received, _progress, cancelled)
    assert [t.header for t in again.tensors] == [t.header for t in update.tensors], "the same round, the same update"


def test_what_is_remembered_outlives_the_process_where_there_is_a_state_folder(tmp_path: Path) -> None:
    given = Given()
    plan = given.plan.reside([slot.id for slot in given.plan.slots if "LayerNorm" in slot.parameter], "client")
    slice_ = plan.slice({"sst2"})
    work = given.work.model_copy(update={"plan": plan.digest, "slice": slice_.to_dict()})
    assets, cancelled = given.family.assets(), threading.Event()

    def started(state_dir: Path | None = tmp_path) -> LocalWorkload:
        workload = LocalWorkload(None, "cpu", threads=1, state_dir=state_dir)
        workload.prepare(given.welcome, assets)
        return workload

    assert not started(None).train(work, slice_, given.received, _progress, cancelled).durable_beside
    first = started()
    update = first.train(work, slice_, given.received, _progress, cancelled)
    assert update.durable_beside
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [
        Path("c", "run", "memory", "round-00001.safetensors")
    ]
    # Another process does round 1 again, and round 2, as the first one would.
    second = started()
    again = second.train(work, slice_, given.received, _progress, cancelled)
    assert [t.header for t in again.tensors] == [t.header for t in update.tensors]
    later = work.model_copy(update={"round": 2, "version": 1})
    third = started()
    results = [
        (
            workload.evaluate(work, slice_, given.received, cancelled),
            workload.evaluate(later, slice_, given.received, cancelled),
            [t.header for t in workload.train(later, slice_, given.received, _progress, cancelled).tensors],
        )
        for workload in (first, second, third)
    ]
    assert results[0] == results[1] == results[2]
    assert results[0][0] == given.prepared().evaluate(given.work, given.slice_, given.received, cancelled)
    assert results[0][0] != results[0][1], "the norms have moved"
    # Damage is a matter for a person.
    [path] = sorted(tmp_path.rglob("round-00002.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"round-00002.safetensors, which holds .* remove the file"):
        started()


def test_evaluation_alone_follows_the_settings_that_came_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is only asked to evaluate, as outside the cohort, has no settings from an earlier round."""
    given, seen = Given(), []
    workload = given.prepared()
    real = evaluate_tasks

    def spy(
        model: Any,  # noqa: ANN401
        tasks: Any,  # noqa: ANN401
        splits: Any,  # noqa: ANN401
        settings: TrainSettings,
        cancelled: Any,  # noqa: ANN401
    ) -> dict[str, Evaluation]:
        seen.append(settings)
        return real(model, tasks, splits, settings, cancelled)

    monkeypatch.setattr("client.trainer.evaluate_tasks", spy)
    asked = {**given.training, "eval_batch_size": 7, "precision": "bf16", "threads": 2}
    for settings in (asked, None):
        work = given.work.model_copy(update={"training": None, "evaluation_settings": settings})
        workload.evaluate(work, given.slice_, given.received, threading.Event())
    assert [(s.eval_batch_size, s.precision) for s in seen] == [(7, "bf16"), (128, "fp32")]
    assert [s.threads for s in seen] == [1, 1], "the client's own --threads comes first"


def decode(tensor: Any) -> Any:  # noqa: ANN401  # an encoded tensor to an array
    return decode_tensor(tensor.header, b"".join(bytes(part) for part in tensor.parts))


def test_a_report_is_sent_as_it_is_gates_and_all() -> None:
    gate = GateReport(("expert.0", "expert.1"), (0.0, 12.0), 0.25)
    report = TaskReport(12, 3, 0.5, 0.1, {"gate": gate})
    sent = contribution_of(report)
    assert sent.model_dump() == asdict(report)


def test_full_synchronisation_returns_every_slot() -> None:
    given = Given("full")
    update = given.prepared("full").train(given.work, given.slice_, given.received, _progress, threading.Event())
    by_slot = {tensor.header.slot: tensor for tensor in update.tensors}
    assert by_slot.keys() == {slot.id for slot in given.slice_.travelling}
    others = [slot.id for slot in given.slice_.slots if slot.tasks == {"stsb"}]
    assert others
    for slot_id in others:
        assert not decode(by_slot[slot_id]).any()


def test_full_synchronisation_leaves_out_what_is_frozen() -> None:
    given = Given("full", frozen="embeddings")
    update = given.prepared("full").train(given.work, given.slice_, given.received, _progress, threading.Event())
    sent = {tensor.header.slot for tensor in update.tensors}
    frozen = {slot.id for slot in given.slice_.travelling if slot.frozen}
    assert frozen
    assert sent == {slot.id for slot in given.slice_.travelling} - frozen


def test_full_synchronisation_leaves_out_what_the_schedule_left_closed() -> None:
    """Zeros of a slot that the client's own task trains would weigh in the round, and hold the others back."""
    updates = {}
    for sync in ("slice", "full"):
        given = Given(sync)
        given.training["unfreeze"] = [{"epoch": 0, "open": ["heads"]}]
        given.work = given.work.model_copy(update={"training": given.training})
        updates[sync] = given.prepared(sync).train(
            given.work, given.slice_, given.received, _progress, threading.Event()
        )
    own, sent = ({tensor.header.slot for tensor in updates[sync].tensors} for sync in ("slice", "full"))
    others = {slot.id for slot in given.slice_.travelling if slot.trained_by and "sst2" not in slot.trained_by}
    assert others
    assert sent == own | others


class Failing:
    """A trainer that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def train(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told", "words"),
    [
        (TrainingCancelled("stopped"), WorkCancelled, "stopped"),
        (TrainingDiverged("nan"), WorkDeclined, "nan"),
        (MemoryError("4 GB"), WorkDeclined, "out of memory on cpu: lower training.batch_size"),
        (torch.OutOfMemoryError("4 GB"), WorkDeclined, "out of memory"),
        (ValueError("a bug"), ValueError, "a bug"),
    ],
)
def test_what_goes_wrong_is_told_in_the_sessions_terms(
    error: Exception, told: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given()
    workload = LocalWorkload(None, "cpu")
    monkeypatch.setattr(workload, "_trainer", Failing(error))
    with pytest.raises(told, match=words):
        workload.train(given.work, Slice.from_dict(given.work.slice), given.received, _progress, threading.Event())


def test_settings_and_tasks_of_another_version_are_refused() -> None:
    given = Given()
    workload = given.prepared()
    odd = given.work.model_copy(update={"training": {**given.training, "quantum": 1}})
    with pytest.raises(ConfigError, match=r"TrainSettings is not understood here(.|\n)*quantum"):
        workload.train(odd, given.slice_, given.received, _progress, threading.Event())
    spec: Any = given.welcome.specs["sst2"]
    welcome = given.welcome.model_copy(update={"specs": {"sst2": {**spec, "quantum": 1}}})
    with pytest.raises(ConfigError, match="TaskSpec is not understood here"):
        workload.prepare(welcome, given.family.assets())


def test_work_before_the_data_is_an_error() -> None:
    given = Given()
    with pytest.raises(ConfigError, match="before the data was loaded"):
        LocalWorkload(None, "cpu").train(given.work, given.slice_, given.received, _progress, threading.Event())
