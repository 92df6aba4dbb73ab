"""How long an update is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.blueprint import Blueprint, ParameterSpec
from common.messages import TaskContribution, UpdateHeader
from common.plan import SharingPlan
from common.stream import StreamReceiver, chunk_frames
from common.torch_tensors import encode
from common.wire import decode_frame
from server.aggregation import distances
from server.spool import SpooledUpdate, SpoolError, SpoolWriter
from server.update_norm import update_norm
from tests.server.tiny_run import PLAN, random_values, spooled


def written(folder: Path, deltas: dict[str, Tensor], chunk_bytes: int, *, rows: bool) -> SpooledUpdate:
    tensors = [encode(slot, delta, allow_rows=rows) for slot, delta in deltas.items()]
    done = TaskContribution(num_examples=1, num_steps=1, loss=0.0, seconds=0.0)
    header = UpdateHeader(
        run_id="run", round=1, version=0, plan=PLAN.digest, stream=1, tasks={"mood": done},
        tensors=tuple(tensor.header for tensor in tensors),
    )  # fmt: skip
    writer = SpoolWriter(folder, header, "c")
    receiver = StreamReceiver(1, header.tensors, writer)
    for frame in chunk_frames(1, tensors, chunk_bytes):
        receiver.accept(decode_frame(frame))  # type: ignore[arg-type]  # a chunk
    return writer.commit()


def trained_by_mood(seed: int = 3) -> dict[str, Tensor]:
    values = random_values(seed=seed)
    deltas = {slot.id: values[slot.id] for slot in PLAN.slots if "mood" in slot.trained_by}
    deltas["table@mood+topic"][::2] = 0
    return deltas


def test_it_is_the_length_of_all_slots_together(tmp_path: Path) -> None:
    deltas = trained_by_mood()
    expected = math.sqrt(sum(float(delta.double().square().sum()) for delta in deltas.values()))
    assert update_norm(spooled(tmp_path, "c", 1, deltas, {"mood": 3}), PLAN) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_how_the_client_cuts_orders_and_encodes_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(distances, "BLOCK", 13)
    deltas = {slot: delta * 3.7**power for power, (slot, delta) in enumerate(trained_by_mood(seed).items())}
    backwards = dict(reversed(deltas.items()))
    found = {
        update_norm(written(tmp_path / str(number), order, chunk_bytes, rows=rows), PLAN)
        for number, (order, chunk_bytes, rows) in enumerate(
            [(deltas, 8, False), (deltas, 4096, False), (backwards, 64, True), (deltas, 8, True)]
        )
    }
    assert len(found) == 1


def test_slots_that_weigh_nothing_do_not_count(tmp_path: Path) -> None:
    """A client of one task that synchronises the whole model sends the other task's head too."""
    deltas = trained_by_mood()
    more = deltas | {"head.topic@topic": torch.full((9,), 1e9), "fixed@mood+topic": torch.full((2,), 1e9)}
    one = update_norm(spooled(tmp_path / "1", "c", 1, deltas, {"mood": 3}), PLAN)
    # Without examples a task trains nothing either.
    two = update_norm(spooled(tmp_path / "2", "c", 1, more, {"mood": 3, "topic": 0}), PLAN)
    assert one == two
    assert update_norm(spooled(tmp_path / "3", "c", 1, more, {"mood": 3, "topic": 1}), PLAN) > 1e9


def test_integers_do_not_count_and_every_float_type_does(tmp_path: Path) -> None:
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "int64": torch.int64}
    tasks = frozenset({"mood"})
    specs = tuple(ParameterSpec(name, (2,), name, tasks, tasks, "g") for name in kinds)
    plan = SharingPlan.shared(Blueprint("tiny", ("mood",), specs))
    deltas = {f"{name}@mood": torch.tensor([3, 4]).to(dtype) for name, dtype in kinds.items()}
    assert update_norm(spooled(tmp_path, "c", 1, deltas, {"mood": 1}), plan) == pytest.approx(5 * math.sqrt(3))


def test_squares_too_large_for_float64_are_infinite_and_nothing_is_zero(tmp_path: Path) -> None:
    tasks = frozenset({"mood"})
    plan = SharingPlan.shared(Blueprint("t", ("mood",), (ParameterSpec("w", (3,), "float64", tasks, tasks, "g"),)))
    large, none = (
        spooled(tmp_path / name, "c", 1, {"w@mood": torch.full((3,), value, dtype=torch.float64)}, {"mood": 1})
        for name, value in (("large", 1e200), ("none", 0.0))
    )
    assert update_norm(large, plan) == math.inf
    assert update_norm(none, plan) == 0


def test_the_update_stays_open_or_closed_as_it_was(tmp_path: Path) -> None:
    update = spooled(tmp_path, "c", 1, trained_by_mood(), {"mood": 3})
    update_norm(update, PLAN)
    with pytest.raises(SpoolError, match="is not open"):
        update.delta("head.mood@mood").read(0, torch.empty(1))
    update.open()
    update_norm(update, PLAN)
    update.delta("head.mood@mood").read(0, torch.empty(1))
    update.close()


def test_a_file_that_is_gone_or_torn_is_an_error(tmp_path: Path) -> None:
    update = spooled(tmp_path, "c", 1, trained_by_mood(), {"mood": 3})
    with update.path.open("r+b") as file:
        file.truncate(update.path.stat().st_size - 10)
    with pytest.raises(SpoolError):
        update_norm(update, PLAN)
    update.path.unlink()
    with pytest.raises(SpoolError):
        update_norm(update, PLAN)
