"""FedAvg, FedProx, SCAFFOLD and FedNova on problems with a known answer: trainer and fold as they are in a real run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.federated_lines import Line, federate, joint_optimum, with_settings

#: Clients that want different slopes (0 and 3) and are sure of it to different degrees.
FLAT, STEEP = Line(1.0, 0.0), Line(2.0, 6.0)
PAIR = {"a": FLAT, "b": STEEP}


def test_scaffold_finds_the_joint_optimum_where_averaging_stalls_off_it(tmp_path: Path) -> None:
    best = joint_optimum([FLAT, STEEP])
    assert best == pytest.approx(2.4)
    plain = federate(tmp_path / "plain", PAIR, 8)
    # Each client comes to rest near its own slope; what is left of the way depends on its curvature.
    went_a, went_b = 1 - 0.9**20, 1 - 0.6**20
    assert plain[-1] == pytest.approx(3 * went_b / (went_a + went_b), rel=1e-4)
    assert abs(plain[-1] - best) > 0.7
    corrected = federate(tmp_path / "scaffold", PAIR, 16, "scaffold")
    assert corrected[-1] == pytest.approx(best, abs=1e-2)
    assert corrected[0] == plain[0], "without control variates yet, the first round is the same to the bit"


def test_scaffold_finds_it_with_some_clients_at_a_time_and_unequal_data(tmp_path: Path) -> None:
    clients = {"a": Line(1.0, 0.0, 4), "b": Line(2.0, 6.0, 4), "c": Line(1.5, 1.0, 4)}
    gentle = {name: with_settings(line, learning_rate=0.05, local_steps=4) for name, line in clients.items()}
    best = joint_optimum(list(gentle.values()))
    turns = ("ab", "bc", "ac")
    corrected = federate(tmp_path / "scaffold", gentle, 45, "scaffold", turns)
    plain = federate(tmp_path / "plain", gentle, 12, "none", turns)
    assert max(abs(value - best) for value in corrected[-3:]) < 0.01
    assert max(abs(value - best) for value in plain[-3:]) > 0.1


def test_scaffold_is_not_led_astray_by_updates_that_were_not_counted(tmp_path: Path) -> None:
    """A client trains, and the round closes without it: its control variate is what the server knows of it."""
    best = joint_optimum([FLAT, STEEP])
    found = federate(tmp_path, PAIR, 24, "scaffold", missed={1: "b", 4: "a"})
    assert found[-1] == pytest.approx(best, abs=1e-2)


def test_fednova_is_true_to_the_objective_where_averaging_follows_whoever_takes_more_steps(tmp_path: Path) -> None:
    """As many examples each, in 2 and in 16 steps: to first order both should pull alike."""
    slow = with_settings(Line(1.0, 0.0, 16), batch_size=16, local_steps=2, learning_rate=4e-3)
    busy = with_settings(Line(2.0, 6.0, 16), batch_size=2, local_steps=16, learning_rate=4e-3)
    best = joint_optimum([slow, busy])
    plain = federate(tmp_path / "plain", {"a": slow, "b": busy}, 30)[-1]
    normalised = federate(tmp_path / "fednova", {"a": slow, "b": busy}, 60, "fednova")[-1]
    went_slow, went_busy = 1 - (1 - 2 * 4e-3) ** 2, 1 - (1 - 8 * 4e-3) ** 16
    assert plain == pytest.approx(3 * went_busy / (went_slow + went_busy), rel=1e-2)
    assert normalised == pytest.approx(3 * (went_busy / 16) / (went_slow / 2 + went_busy / 16), rel=1e-2)
    assert abs(plain - best) > 0.4
    assert abs(normalised - best) < 0.15


def test_fednova_with_equal_steps_is_averaging_to_the_bit(tmp_path: Path) -> None:
    clients = {**PAIR, "c": Line(0.7, 0.2, 8)}
    assert federate(tmp_path / "fednova", clients, 3, "fednova") == federate(tmp_path / "plain", clients, 3)


def test_a_strong_proximal_term_holds_clients_back_and_none_does_not(tmp_path: Path) -> None:
    plain = federate(tmp_path / "plain", PAIR, 1)
    held = {name: with_settings(line, proximal=10.0) for name, line in PAIR.items()}
    # From 0 a client comes to rest where its slope's pull is the term's: h (w* - w) = mu w.
    assert federate(tmp_path / "held", held, 1)[0] == pytest.approx((0 + 8 * 3 / 18) / 2, rel=1e-4)
    assert plain[0] == pytest.approx(1.5, rel=1e-3)
    # Steps back towards the start make the compromise truer to the joint optimum.
    best = joint_optimum([FLAT, STEEP])
    assert abs(federate(tmp_path / "long", held, 12)[-1] - best) < abs(federate(tmp_path / "far", PAIR, 6)[-1] - best)
