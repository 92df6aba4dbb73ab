"""A round's updates become the next version."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.plan import SharingPlan
from server import reduce
from server.aggregation import AggregationConfig, AggregatorChoice
from server.model_state import ModelState
from server.reduce import ReductionCancelled, UnsoundModel, reduce_round
from server.spool import SpooledUpdate, SpoolError
from server.weights import TaskWeights
from tests.server.tiny_run import BLUEPRINT, PLAN, random_values, spooled, state

DEFAULT = AggregatorChoice.of(AggregationConfig())
EXAMPLES: dict[str, dict[str, int]] = {
    "p": {"mood": 30},
    "q": {"mood": 10},
    "r": {"topic": 7},
    "s": {"mood": 3, "topic": 5},
}


def deltas_of(client_id: str, plan: SharingPlan = PLAN) -> dict[str, Tensor]:
    """What a client sends: a delta for each slot that its tasks train; few rows of the table."""
    values = random_values(plan, seed=ord(client_id))
    slice_ = plan.slice(EXAMPLES[client_id])
    result = {slot.id: values[slot.id] for slot in slice_.trainable}
    for slot_id, value in result.items():
        if slot_id.startswith("table"):
            value[::2] = 0
    return result


def reduced(
    folder: Path, clients: str, rule: TaskWeights = "uniform", plan: SharingPlan = PLAN
) -> tuple[ModelState, dict[str, Tensor]]:
    """The next model, and the values before."""
    model = state(plan)
    before = dict(model.values)
    updates = [spooled(folder, c, 1, deltas_of(c, plan), EXAMPLES[c]) for c in clients]
    reduce_round(model, updates, {c: EXAMPLES[c] for c in clients}, rule, DEFAULT)
    assert model.version == 1
    return model, before


def test_a_late_delta_of_a_slot_that_is_frozen_by_now_weighs_nothing(tmp_path: Path) -> None:
    """It was made under a plan in which the slot was open; what else the update brings counts."""
    now, following = PLAN.freeze(["body@mood+topic", "head.mood@mood"]), PLAN.freeze(["head.mood@mood"])
    model = state(now)
    before = dict(model.values)
    updates = [spooled(tmp_path, c, 1, deltas_of(c), EXAMPLES[c]) for c in "pr"]
    late = dict.fromkeys("pr", 0.5)
    reduce_round(
        model, updates, {c: EXAMPLES[c] for c in "pr"}, "uniform", DEFAULT, discounts=late, next_plan=following
    )
    assert model.plan == following
    still = {slot.id for slot in PLAN.slots if model.values[slot.id] is before[slot.id]}
    assert {"body@mood+topic", "head.mood@mood"} <= still
    assert not {"table@mood+topic", "head.topic@topic", "scalar@mood+topic"} & still


def test_tied_slots_move_once_all_have_their_next_value(tmp_path: Path) -> None:
    plain, _ = reduced(tmp_path / "1", "pqrs")
    model, seen = state(), dict[str, Tensor]()

    def couple(plan: SharingPlan, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert plan == PLAN
        seen.update(values)
        return {"body@mood+topic": values["body@mood+topic"] * 0.5}

    updates = [spooled(tmp_path / "2", c, 1, deltas_of(c), EXAMPLES[c]) for c in "pqrs"]
    following = PLAN.freeze(["body@mood+topic"])
    reduce_round(model, updates, EXAMPLES, "uniform", DEFAULT, next_plan=following, couple=couple)
    assert all(torch.equal(seen[slot_id], value) for slot_id, value in plain.values.items())
    for slot_id, value in plain.values.items():
        halved = slot_id == "body@mood+topic"
        assert torch.equal(model.values[slot_id], value * 0.5 if halved else value)


def formula(before: Tensor, slot_id: str, clients: str, omega: Mapping[str, float], plan: SharingPlan) -> Tensor:
    """theta + sum_t omega_t sum_{k in t} (n_k / N_t) delta_k in float64, as it is written."""
    slot = plan.by_id[slot_id]
    totals = {t: sum(EXAMPLES[c].get(t, 0) for c in clients) for t in sorted(slot.trained_by)}
    present = [t for t, total in totals.items() if total]
    norm = sum(omega[t] for t in present)
    result = before.double()
    for task in present:
        for client in clients:
            if count := EXAMPLES[client].get(task, 0):
                delta = deltas_of(client, plan)[slot_id].double()
                result = result + omega[task] / norm * count / totals[task] * delta
    return result


@pytest.mark.parametrize("plan", [PLAN, SharingPlan.separate(BLUEPRINT)], ids=["mtl", "per_task"])
@pytest.mark.parametrize("clients", ["pqrs", "pq", "r", "qs"])
@pytest.mark.parametrize("rule", ["uniform", {"mood": 3.0, "topic": 0.5}], ids=["uniform", "given"])
def test_the_formula(tmp_path: Path, plan: SharingPlan, clients: str, rule: TaskWeights) -> None:
    model, before = reduced(tmp_path, clients, rule, plan)
    omega = {"mood": 1.0, "topic": 1.0} if rule == "uniform" else rule
    assert isinstance(omega, Mapping)
    for slot_id, value in model.values.items():
        wanted = formula(before[slot_id], slot_id, clients, omega, plan)
        # The one rounding to float32 is at the end: half a unit in the last place, and no more.
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double(), wanted, rtol=2**-24 + 1e-12, atol=1e-12)


def test_a_slot_of_absent_tasks_keeps_its_value_bit_for_bit(tmp_path: Path) -> None:
    model, before = reduced(tmp_path, "r")
    for slot_id in ("head.mood@mood", "fixed@mood+topic"):
        assert model.values[slot_id] is before[slot_id]
    assert not torch.equal(model.values["head.topic@topic"], before["head.topic@topic"])


def test_a_head_moves_by_its_own_task_alone(tmp_path: Path) -> None:
    alone, before = reduced(tmp_path / "1", "pq")
    together, _ = reduced(tmp_path / "2", "pqr")
    head = "head.mood@mood"
    assert torch.equal(alone.values[head], together.values[head])
    wanted = before[head] + 0.75 * deltas_of("p")[head] + 0.25 * deltas_of("q")[head]
    torch.testing.assert_close(alone.values[head], wanted)


def test_the_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    forth, _ = reduced(tmp_path / "1", "pqrs")
    back, _ = reduced(tmp_path / "2", "srqp")
    for slot_id, value in forth.values.items():
        assert value.numpy().tobytes() == back.values[slot_id].numpy().tobytes()


def test_only_rows_that_were_sent_move(tmp_path: Path) -> None:
    model, before = reduced(tmp_path, "pr")
    table = "table@mood+topic"
    assert torch.equal(model.values[table][::2], before[table][::2])
    assert (model.values[table][1::2] != before[table][1::2]).all()


def test_the_old_version_is_left_as_it_was(tmp_path: Path) -> None:
    """Its memory may still be on its way to a slow client."""
    _, before = reduced(tmp_path, "pqrs")
    for slot_id, value in random_values().items():
        assert torch.equal(before[slot_id], value)


def test_a_torn_update_is_an_error_and_files_are_closed(tmp_path: Path) -> None:
    model = state()
    updates: list[SpooledUpdate] = [spooled(tmp_path, c, 1, deltas_of(c), EXAMPLES[c]) for c in "pq"]
    size = updates[1].path.stat().st_size
    with updates[1].path.open("r+b") as file:
        file.truncate(size - 100)
    with pytest.raises(SpoolError, match="ends early"):
        reduce_round(model, updates, {c: EXAMPLES[c] for c in "pq"}, "uniform", DEFAULT)
    with pytest.raises(SpoolError, match="is not open"):
        updates[0].delta("head.mood@mood").read(0, torch.empty(1))
    assert model.version == 0


def test_the_new_version_is_encoded_at_once(tmp_path: Path) -> None:
    model, _ = reduced(tmp_path, "p")
    for slot in PLAN.slots:
        encoded = model.encoded(slot.id)
        payload = b"".join(bytes(part) for part in encoded.parts)
        assert payload == model.values[slot.id].numpy().tobytes()
        assert model.encoded(slot.id) is encoded
    assert np.isfinite(model.values["body@mood+topic"].numpy()).all()


def fingerprint(model: ModelState) -> dict[str, bytes]:
    return {slot_id: value.numpy().tobytes() for slot_id, value in model.values.items()}


def test_a_slot_is_reduced_by_the_aggregator_of_its_rule(tmp_path: Path) -> None:
    config = AggregationConfig.model_validate(
        {"per_slot": [{"match": "head.*", "use": {"method": "krum", "byzantine": 0}}]}
    )
    model, summed = state(), reduced(tmp_path, "pq")[0]
    updates = [spooled(tmp_path / "again", c, 1, deltas_of(c), EXAMPLES[c]) for c in "pq"]
    reduce_round(model, updates, {c: EXAMPLES[c] for c in "pq"}, "uniform", AggregatorChoice.of(config, PLAN.slots))
    head, body = "head.mood@mood", "body@mood+topic"
    assert torch.equal(model.values[body], summed.values[body])
    torch.testing.assert_close(model.values[head], random_values()[head] + deltas_of("p")[head])


def test_a_version_with_infinite_values_is_not_made(tmp_path: Path) -> None:
    """Each delta is finite; their sum is not. The slot is not the first, so others had been reduced already."""
    model = state()
    before = fingerprint(model)
    deltas = deltas_of("p")
    deltas["head.mood@mood"][3] = 3e38
    model.values["head.mood@mood"][3] = 3e38
    before = fingerprint(model)
    with pytest.raises(UnsoundModel, match=r"version 1 would hold .* slot 'head\.mood@mood', from the updates of p: "):
        reduce_round(
            model, [spooled(tmp_path, "p", 1, deltas, EXAMPLES["p"])], {"p": EXAMPLES["p"]}, "uniform", DEFAULT
        )
    assert (model.version, fingerprint(model)) == (0, before)


def test_a_fold_that_is_told_to_stop_leaves_the_model_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cancelled = state(), threading.Event()
    before = fingerprint(model)
    updates = [spooled(tmp_path / "1", c, 1, deltas_of(c), EXAMPLES[c]) for c in "pqrs"]
    fold = partial(reduce_round, model, updates, EXAMPLES, "uniform", DEFAULT, cancelled=cancelled)
    # Half of the slots have been reduced when it is told.
    monkeypatch.setattr(reduce, "failpoint", lambda name: cancelled.set() if name == "reduce.half" else None)
    with pytest.raises(ReductionCancelled, match="version 1 was not made: told to stop before slot"):
        fold()
    assert (model.version, fingerprint(model)) == (0, before)
    with pytest.raises(SpoolError, match="is not open"):
        updates[0].delta("head.mood@mood").read(0, torch.empty(1))
    monkeypatch.undo()
    cancelled.clear()
    fold()
    assert (model.version, fingerprint(model)) == (1, fingerprint(reduced(tmp_path / "2", "pqrs")[0]))


def test_the_points_at_which_tests_kill_the_server_are_passed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[str, int]] = []
    model = state()
    monkeypatch.setattr(reduce, "failpoint", lambda name: passed.append((name, model.version)))
    reduce_round(
        model, [spooled(tmp_path, "r", 1, deltas_of("r"), EXAMPLES["r"])], {"r": EXAMPLES["r"]}, "uniform", DEFAULT
    )
    assert passed == [("reduce.begun", 0), ("reduce.half", 0), ("reduce.done", 1)]
