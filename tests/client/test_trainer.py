from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from client.device import choose_device
from client.trainer import LocalResult, LocalTrainer, Progress, TaskData, TrainingCancelled, TrainingDiverged
from common.errors import PlanError
from common.plan import SharingPlan, Slice
from common.training import Position, TrainSettings
from tests.client.tiny_family import (
    TASKS,
    TinyFamily,
    TinyModel,
    TinySplit,
    shared_slice,
    tiny_data,
    tiny_split,
    values_of,
)

CPU = choose_device("cpu")
ONE_SGD_STEP = TrainSettings(
    local_steps=1,
    batch_size=1000,
    learning_rate=0.5,
    head_learning_rate=1,
    optimizer="sgd",
    weight_decay=0,
    warmup=0,
    schedule="constant",
    max_grad_norm=None,
)


def train(
    family: TinyFamily,
    slice_: Slice,
    data: dict[str, TaskData],
    settings: TrainSettings,
    *,
    trainer: LocalTrainer | None = None,
    values: dict[str, Tensor] | None = None,
    round_: int = 1,
    client_id: str = "c",
    seed: int = 7,
) -> LocalResult:
    return (trainer or LocalTrainer(family, data, CPU)).train(
        slice_,
        values_of(family, slice_) if values is None else values,
        settings,
        Position(round_, 10),
        seed,
        client_id,
        lambda _: None,
        threading.Event(),
    )


@pytest.mark.parametrize("task", list(TASKS))
def test_one_sgd_step_over_all_rows_is_the_full_batch_gradient_step(task: str) -> None:
    family, data = TinyFamily(), tiny_data({task: 50})
    slice_ = shared_slice(family, task)
    values = values_of(family, slice_)
    result = train(family, slice_, data, ONE_SGD_STEP, values=values)

    plain = TinyModel([task], 0.0, False)
    plain.load_state_dict({slot.parameter: values[slot.id] for slot in slice_.slots}, strict=False)
    rows = data[task].train
    outputs = plain(task, rows.collate(torch.arange(50).numpy()))
    loss_of = functional.mse_loss if task == "score" else functional.cross_entropy
    loss = loss_of(outputs, rows.labels)
    loss.backward()  # type: ignore[no-untyped-call]

    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        delta = result.deltas[slice_.slot_of(task, name).id]
        torch.testing.assert_close(delta, -0.5 * parameter.grad, rtol=1e-5, atol=1e-6)
    report = result.reports[task]
    assert (report.num_examples, report.num_steps) == (50, 1)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)


def test_running_means_come_back_as_deltas() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 50})
    slice_ = shared_slice(family, "mood")
    result = train(family, slice_, data, ONE_SGD_STEP)
    assert result.deltas[slice_.slot_of("mood", "norm.running_mean").id].abs().sum() > 0


def test_received_values_are_left_as_they_are() -> None:
    family, data = TinyFamily(dropout=0.2), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    values, before = values_of(family, slice_), values_of(family, slice_)
    trainer = LocalTrainer(family, data, CPU)
    settings = TrainSettings(batch_size=8)
    trainer.evaluate(slice_, values, settings)
    result = train(family, slice_, data, settings, trainer=trainer, values=values)
    trainer.evaluate(slice_, values, settings)
    assert all(torch.equal(values[slot], before[slot]) for slot in values)
    kept = {slot: delta.clone() for slot, delta in result.deltas.items()}
    train(family, slice_, data, settings, trainer=trainer, values=values, round_=2)
    assert all(torch.equal(kept[slot], delta) for slot, delta in result.deltas.items())


def test_running_means_that_no_task_trains_stay_on_the_client() -> None:
    """The forward pass moves them all the same, and must not do so in the received memory."""
    name = "norm.running_mean"
    family, data = TinyFamily(trained_by={name: frozenset()}), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    values, before = values_of(family, slice_), values_of(family, slice_)
    result = train(family, slice_, data, TrainSettings(batch_size=8), values=values)
    slot = slice_.slot_of("mood", name).id
    assert slot not in result.deltas
    assert torch.equal(values[slot], before[slot])


def test_the_same_round_gives_the_same_bits_and_anything_else_does_not() -> None:
    family, data = TinyFamily(dropout=0.3), tiny_data({"mood": 40, "score": 30})
    slice_ = shared_slice(family, "mood", "score")
    settings = TrainSettings(batch_size=8)
    first = train(family, slice_, data, settings)
    torch.manual_seed(99)  # the process's own random state must not matter
    again = train(family, slice_, data, settings)
    assert first.deltas.keys() == again.deltas.keys()
    assert all(torch.equal(first.deltas[slot], again.deltas[slot]) for slot in first.deltas)
    word = slice_.slot_of("mood", "embeddings.weight").id
    for other in (
        train(family, slice_, data, settings, client_id="d"),
        train(family, slice_, data, settings, round_=2),
        train(family, slice_, data, settings, seed=8),
    ):
        assert not torch.equal(first.deltas[word], other.deltas[word])


def test_dropout_depends_on_the_client() -> None:
    """With one batch of equal rows nothing but dropout can tell two clients apart."""
    slice_ = shared_slice(TinyFamily(), "mood")
    data = {"mood": TaskData(TinySplit(((1, 2, 3),) * 40, torch.zeros(40, dtype=torch.int64)))}
    bias = slice_.slot_of("mood", "norm.bias").id
    for dropout, same in ((0.0, True), (0.5, False)):
        family = TinyFamily(dropout=dropout)
        one, two = (train(family, slice_, data, ONE_SGD_STEP, client_id=client).deltas[bias] for client in "cd")
        assert torch.allclose(one, two, atol=1e-6) is same


def test_training_leaves_the_process_random_stream_and_switches_alone() -> None:
    family, data = TinyFamily(dropout=0.5), tiny_data({"mood": 20})
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    train(family, shared_slice(family, "mood"), data, TrainSettings(threads=threads + 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_untouched_embedding_rows_stay_exactly_zero(optimizer: str) -> None:
    family = TinyFamily()
    rows = tiny_split("mood", 40, words=6)  # tokens 0..5 of 20
    slice_ = shared_slice(family, "mood")
    momentum = 0.9 if optimizer == "sgd" else 0.0
    settings = TrainSettings.model_validate(
        {"optimizer": optimizer, "momentum": momentum, "weight_decay": 0.1, "batch_size": 8, "local_epochs": 3}
    )
    delta = train(family, slice_, {"mood": TaskData(rows)}, settings).deltas
    table = delta[slice_.slot_of("mood", "embeddings.weight").id]
    assert torch.equal(table[6:], torch.zeros(14, 4))
    assert (table[:6] != 0).any(dim=1).all()


def test_weight_decay_reaches_matrices_and_nothing_else() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    plain = train(family, slice_, data, ONE_SGD_STEP).deltas
    decayed = train(family, slice_, data, ONE_SGD_STEP.model_copy(update={"weight_decay": 0.1})).deltas
    changed = {slot.split("@")[0] for slot in plain if not torch.equal(plain[slot], decayed[slot])}
    assert changed == {"hidden.weight", "heads.mood.weight"}


def test_heads_learn_at_their_own_rate() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    plain = train(family, slice_, data, ONE_SGD_STEP).deltas
    faster = train(family, slice_, data, ONE_SGD_STEP.model_copy(update={"head_learning_rate": 2.0})).deltas
    for slot, delta in plain.items():
        torch.testing.assert_close(faster[slot], delta * (2 if slot.startswith("heads") else 1), rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_the_norm() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    deltas = train(family, slice_, data, ONE_SGD_STEP.model_copy(update={"max_grad_norm": 0.01})).deltas
    moved = torch.stack([d.norm() for slot, d in deltas.items() if "running" not in slot]).norm()
    assert float(moved) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_learning_rate_follows_from_the_round() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    settings = ONE_SGD_STEP.model_copy(update={"schedule": "linear"})
    first, last = (train(family, slice_, data, settings, round_=r).deltas for r in (1, 10))
    slot = slice_.slot_of("mood", "hidden.weight").id
    torch.testing.assert_close(last[slot], first[slot] * 0.1, rtol=1e-4, atol=1e-6)


def test_a_frozen_slot_is_neither_changed_nor_sent() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    plan = SharingPlan.shared(family.blueprint())
    frozen = [slot.id for slot in plan.slots if not slot.parameter.startswith("heads")]
    slice_ = plan.freeze(frozen).slice(["mood"])
    result = train(family, slice_, data, TrainSettings(batch_size=8))
    assert set(result.deltas) == {"heads.mood.weight@mood", "heads.mood.bias@mood"}
    everything = plan.freeze([slot.id for slot in plan.slots]).slice(["mood"])
    with pytest.raises(PlanError, match="may be trained"):
        train(family, everything, data, TrainSettings())


def test_a_slot_is_trained_only_on_batches_of_tasks_that_may_train_it() -> None:
    """Progressive networks: a later task reads a column that only the earlier one trains."""
    family = TinyFamily(["mood", "score"], trained_by={"hidden.weight": frozenset({"mood"})})
    data = tiny_data({"mood": 20, "score": 20})
    plan = SharingPlan.shared(family.blueprint())
    slot = plan.of("hidden.weight")[0].id
    alone = train(family, plan.slice(["score"]), {"score": data["score"]}, TrainSettings(batch_size=4))
    assert slot not in alone.deltas
    both = plan.slice(["mood", "score"])
    settings = ONE_SGD_STEP.model_copy(update={"local_steps": 4, "batch_size": 20})
    mixed = train(family, both, data, settings)
    assert {task: report.num_steps for task, report in mixed.reports.items()} == {"mood": 2, "score": 2}
    assert mixed.deltas[slot].abs().sum() > 0
    # One step for two tasks: of seeds that give it to each, only those for mood move the slot.
    one_step = [train(family, both, data, ONE_SGD_STEP, seed=seed) for seed in range(8)]
    assert {next(iter(result.reports)) for result in one_step} == {"mood", "score"}
    for result in one_step:
        assert (slot in result.deltas) == ("mood" in result.reports)
        assert ("heads.score.bias@score" in result.deltas) == ("score" in result.reports)


def test_tasks_with_split_slots_train_apart_and_shared_slots_together() -> None:
    family = TinyFamily(["mood", "score"])
    data = tiny_data({"mood": 32, "score": 32})
    plan = SharingPlan.shared(family.blueprint())
    for parameter in ("hidden.weight", "hidden.bias"):
        plan = plan.split(parameter, [["mood"], ["score"]])
    both = train(family, plan.slice(["mood", "score"]), data, TrainSettings(batch_size=8, local_epochs=2))
    assert {slot for slot in both.deltas if slot.startswith("hidden.weight")} == {
        "hidden.weight@mood",
        "hidden.weight@score",
    }
    shared = both.deltas["embeddings.weight@mood+score"]
    assert not torch.equal(both.deltas["hidden.weight@mood"], both.deltas["hidden.weight@score"])

    # One full-batch step each on a fresh start: the shared table moves by the sum of both tasks' steps.
    settings = ONE_SGD_STEP.model_copy(update={"local_steps": 2, "learning_rate": 1e-3})
    together = train(family, plan.slice(["mood", "score"]), data, settings).deltas
    single = {
        task: train(
            family, plan.slice([task]), {task: data[task]}, settings.model_copy(update={"local_steps": 1})
        ).deltas
        for task in data
    }
    for task in data:
        slot = f"hidden.weight@{task}"
        torch.testing.assert_close(together[slot], single[task][slot], rtol=0.05, atol=1e-6)
    table = "embeddings.weight@mood+score"
    torch.testing.assert_close(together[table], single["mood"][table] + single["score"][table], rtol=0.05, atol=1e-6)
    assert shared.shape == together[table].shape


def test_separate_models_of_one_client_do_not_influence_each_other() -> None:
    family = TinyFamily(["mood", "score"])
    data = tiny_data({"mood": 32, "score": 24})
    plan = SharingPlan.separate(family.blueprint())
    settings = TrainSettings(batch_size=8, schedule="constant", warmup=0)
    both = train(family, plan.slice(["mood", "score"]), data, settings).deltas
    alone = train(family, plan.slice(["mood"]), {"mood": data["mood"]}, settings).deltas
    assert all(torch.equal(both[slot], alone[slot]) for slot in alone)


def test_the_whole_model_may_come_to_a_client_of_one_task() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 32})
    whole = SharingPlan.shared(family.blueprint()).slice(list(TASKS))
    own = shared_slice(family, "mood")
    settings = TrainSettings(batch_size=8)
    full = train(family, whole, data, settings)
    part = train(family, own, data, settings)
    assert full.deltas.keys() == part.deltas.keys()
    assert all(torch.equal(full.deltas[slot], part.deltas[slot]) for slot in part.deltas)


def test_client_slots_stay_on_the_client_from_round_to_round() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 32})
    plan = SharingPlan.shared(family.blueprint())
    own = plan.of("heads.mood.weight")[0].id
    slice_ = plan.reside([own], "client").slice(["mood"])
    values, settings = values_of(family, slice_), ONE_SGD_STEP
    trainer = LocalTrainer(family, data, CPU)

    first = train(family, slice_, data, settings, trainer=trainer, values=values)
    assert own not in first.deltas
    sent = {slot: value for slot, value in values.items() if slot != own}
    later = train(family, slice_, data, settings, trainer=trainer, values=sent, round_=2)
    redone = train(family, slice_, data, settings, trainer=trainer, values=sent, round_=2)
    bias = "heads.mood.bias@mood"
    assert not torch.equal(first.deltas[bias], later.deltas[bias])  # the head had moved
    assert torch.equal(later.deltas[bias], redone.deltas[bias])  # the same round starts where it did
    with pytest.raises(PlanError, match="lives on the client"):
        train(family, slice_, data, settings, values=sent)


def test_a_client_whose_own_slots_are_frozen_at_first_has_lost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    family, data = TinyFamily(), tiny_data({"mood": 32})
    plan = SharingPlan.shared(family.blueprint())
    own = plan.of("heads.mood.weight")[0].id
    slice_, trainer = plan.reside([own], "client").freeze([own]).slice(["mood"]), LocalTrainer(family, data, CPU)

    def second_round(trainer: LocalTrainer) -> None:
        values = values_of(family, slice_)
        trainer.train(
            slice_, values, ONE_SGD_STEP, Position(2, 10), 7, "c", lambda _: None, threading.Event(), counted=1
        )

    train(family, slice_, data, ONE_SGD_STEP, trainer=trainer)
    second_round(trainer)
    assert "nothing is remembered" not in caplog.text
    second_round(LocalTrainer(family, data, CPU))
    assert "nothing is remembered" in caplog.text


def test_modules_are_built_once_per_slice() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 16})
    trainer, slice_ = LocalTrainer(family, data, CPU), shared_slice(family, "mood")
    for number in (1, 2, 3):
        train(family, slice_, data, TrainSettings(), trainer=trainer, round_=number)
    assert family.builds == 1


def test_diverged_training_returns_nothing_and_names_the_task() -> None:
    family, data = TinyFamily(), tiny_data({"score": 32})
    settings = ONE_SGD_STEP.model_copy(update={"learning_rate": 1e38, "local_steps": 5})
    with pytest.raises(TrainingDiverged, match=r"loss of task 'score'.*learning_rate"):
        train(family, shared_slice(family, "score"), data, settings)


def test_a_delta_that_overflows_in_the_last_step_is_refused() -> None:
    """The loss was finite before the step, so only the check of the deltas can notice."""
    family, data = TinyFamily(), tiny_data({"score": 32})
    slice_ = shared_slice(family, "score")
    values = values_of(family, slice_)
    values["heads.score.weight@score"] *= 10
    settings = ONE_SGD_STEP.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(TrainingDiverged, match="slot"):
        train(family, slice_, data, settings, values=values)


def test_cancelling_stops_before_the_next_step() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 64})
    slice_, cancelled = shared_slice(family, "mood"), threading.Event()
    seen: list[Progress] = []

    def progress(report: Progress) -> None:
        seen.append(report)
        cancelled.set()

    with pytest.raises(TrainingCancelled):
        LocalTrainer(family, data, CPU).train(
            slice_, values_of(family, slice_), TrainSettings(), Position(1, 1), 1, "c", progress, cancelled
        )
    assert [report.done_steps for report in seen] == [0]
    with pytest.raises(TrainingCancelled):
        LocalTrainer(family, data, CPU).evaluate(slice_, values_of(family, slice_), TrainSettings(), cancelled)


def test_progress_tells_the_first_and_the_last_step() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 64})
    slice_ = shared_slice(family, "mood")
    seen: list[Progress] = []
    result = LocalTrainer(family, data, CPU).train(
        slice_,
        values_of(family, slice_),
        TrainSettings(batch_size=16),
        Position(1, 1),
        1,
        "c",
        seen.append,
        threading.Event(),
    )
    assert (seen[0].done_steps, seen[0].total_steps, seen[0].loss) == (0, 4, 0.0)
    assert (seen[-1].done_steps, seen[-1].total_steps) == (4, 4)
    assert seen[-1].loss == pytest.approx(result.reports["mood"].loss)
    assert seen[-1].examples_per_second > 0


def test_bfloat16_training_stays_close_and_returns_float32() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 64})
    slice_ = shared_slice(family, "mood")
    exact = train(family, slice_, data, ONE_SGD_STEP)
    coarse = train(family, slice_, data, ONE_SGD_STEP.model_copy(update={"precision": "bf16"}))
    assert {delta.dtype for delta in coarse.deltas.values()} == {torch.float32}
    assert coarse.reports["mood"].loss == pytest.approx(exact.reports["mood"].loss, rel=0.02)
    assert coarse.reports["mood"].loss != exact.reports["mood"].loss


def test_training_learns_and_evaluation_shows_it() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 300, "score": 300})
    slice_ = shared_slice(family, "mood", "score")
    values = values_of(family, slice_)
    trainer = LocalTrainer(family, data, CPU)
    settings = TrainSettings(local_epochs=15, batch_size=16, learning_rate=0.02, schedule="constant")
    before = trainer.evaluate(slice_, values, settings)
    result = train(family, slice_, data, settings, trainer=trainer, values=values)
    after = trainer.evaluate(slice_, {s: v + result.deltas.get(s, 0) for s, v in values.items()}, settings)
    assert after["mood"].metrics["accuracy"] > max(0.8, before["mood"].metrics["accuracy"])
    assert after["score"].metrics["pearson"] > 0.7
    assert after["score"].loss < before["score"].loss


def test_a_task_without_held_out_rows_is_not_evaluated() -> None:
    family = TinyFamily()
    data = tiny_data({"mood": 20}) | {"score": TaskData(tiny_split("score", 20))}
    slice_ = shared_slice(family, "mood", "score")
    results = LocalTrainer(family, data, CPU).evaluate(slice_, values_of(family, slice_), TrainSettings())
    assert set(results) == {"mood"}
    assert results["mood"].examples == 16


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_task_with_nothing_but_buffers_to_train_takes_no_step(precision: str, mixed: bool) -> None:
    tasks = ("mood", "score")
    buffers = {p.name for p in TinyFamily(tasks).blueprint().parameters if p.kind == "buffer"}
    plan = SharingPlan.shared(TinyFamily(tasks).blueprint())
    settings = TrainSettings.model_validate({"batch_size": 8, "precision": precision, "mixed_batches": mixed})
    for open_, trained in ((buffers, set()), (buffers | {"heads.score.weight"}, {"score"})):
        slice_ = plan.freeze(slot.id for slot in plan.slots if slot.parameter not in open_).slice(tasks)
        family, data = TinyFamily(tasks), tiny_data({"mood": 20, "score": 20})
        if trained:
            assert train(family, slice_, data, settings).reports.keys() == trained
        else:
            with pytest.raises(PlanError, match="no parameter of the slice may be trained"):
                train(family, slice_, data, settings)


def test_a_frozen_norm_works_as_in_evaluation_while_the_rest_trains() -> None:
    family, data = TinyFamily(["mood"]), tiny_data({"mood": 30})
    plan = SharingPlan.shared(family.blueprint())
    slice_ = plan.freeze(slot.id for slot in plan.slots if slot.spec.group != "head").slice(["mood"])
    values, model = values_of(family, slice_), TinyModel(["mood"], 0.0, tied=False)
    model.load_state_dict({slot.parameter: values[slot.id] for slot in slice_.slots}, strict=False)
    model.eval()
    split = data["mood"].train
    outputs = model("mood", split.collate(torch.arange(30).numpy()))
    torch.autograd.backward(functional.cross_entropy(outputs, split.labels))
    (gradient,) = [p.grad for name, p in model.named_parameters() if name == "heads.mood.weight"]
    assert gradient is not None
    trainer = LocalTrainer(family, data, CPU)
    result = train(family, slice_, data, ONE_SGD_STEP, trainer=trainer, values=values)
    torch.testing.assert_close(result.deltas["heads.mood.weight@mood"], -0.5 * gradient)
    open_ = plan.slice(["mood"])
    moved = train(family, open_, data, ONE_SGD_STEP, trainer=trainer).deltas
    assert moved[open_.slot_of("mood", "norm.running_mean").id].any()
