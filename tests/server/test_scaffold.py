"""The weights of control variates: shares of the update's weights, by participation."""

from __future__ import annotations

import math

import pytest

from common.control_variates import with_controls
from server.scaffold import control_weights
from tests.server.tiny_run import PLAN

BODY = with_controls(PLAN).by_id["body#control@mood+topic"]
HEAD = with_controls(PLAN).by_id["head.mood#control@mood"]
MOOD, TOPIC = frozenset({"mood"}), frozenset({"topic"})
PRESENT = {"a": MOOD, "b": MOOD, "c": TOPIC, "d": TOPIC}


def test_with_everybody_there_they_are_the_updates_own() -> None:
    weights = {"a": 0.3, "b": 0.2, "c": 0.25, "d": 0.25}
    assert control_weights(BODY, weights, PRESENT) == pytest.approx(weights)
    summed = {client_id: 2 * weight for client_id, weight in weights.items()}
    assert control_weights(BODY, summed, PRESENT) == pytest.approx(weights), "with task_step: sum too"


def test_with_some_of_them_they_sum_to_the_share_that_took_part() -> None:
    assert math.fsum(control_weights(BODY, {"a": 0.5, "c": 0.5}, PRESENT).values()) == pytest.approx(0.5)
    assert control_weights(HEAD, {"a": 1.0}, PRESENT) == {"a": 0.5}, "only clients whose tasks train the slot count"


def test_who_answered_was_there() -> None:
    assert control_weights(HEAD, {"z": 1.0}, {}) == {"z": 1.0}
    assert control_weights(HEAD, {"z": 1.0}, PRESENT)["z"] == pytest.approx(1 / 3)
