"""A round's updates become the next version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.plan import SharingPlan
from server.aggregation import build_aggregator
from server.model_state import ModelState
from server.reduce import reduce_round
from server.spool import SpooledUpdate, SpoolError
from server.weights import TaskWeights
from tests.server.tiny_run import BLUEPRINT, PLAN, random_values, spooled, state

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
    reduce_round(model, updates, {c: EXAMPLES[c] for c in clients}, rule, build_aggregator("weighted_sum"))
    assert model.version == 1
    return model, before


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
        reduce_round(model, updates, {c: EXAMPLES[c] for c in "pq"}, "uniform", build_aggregator("weighted_sum"))
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
