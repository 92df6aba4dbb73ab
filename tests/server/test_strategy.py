"""The plan a run starts from."""

from __future__ import annotations

from common.plan import SharingPlan
from server.strategy import initial_plan
from tests.server.tiny_run import BLUEPRINT


def test_mtl_shares_the_encoder_and_not_the_heads() -> None:
    plan = initial_plan("mtl", BLUEPRINT)
    assert plan == SharingPlan.shared(BLUEPRINT)
    assert {slot.id for slot in plan.slots} >= {"body@mood+topic", "head.mood@mood", "head.topic@topic"}


def test_per_task_shares_nothing() -> None:
    plan = initial_plan("per_task", BLUEPRINT)
    assert all(len(slot.tasks) == 1 for slot in plan.slots)
    mood, topic = plan.slice({"mood"}), plan.slice({"topic"})
    assert not {slot.id for slot in mood.slots} & {slot.id for slot in topic.slots}
