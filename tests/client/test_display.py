"""What a person sees: plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import logging
import threading

import pytest

from client.display import Display
from client.workload import TrainedUpdate
from common.messages import TaskContribution, TaskEvaluation

UPDATE = TrainedUpdate({"mood": TaskContribution(num_examples=640, num_steps=20, loss=0.5, seconds=1.5)}, [])


def test_a_log_gets_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedmtl.client")
    display = Display(terminal=False)
    display.evaluated(3, {"mood": TaskEvaluation(metrics={"accuracy": 0.75}, loss=0.25, examples=40)})
    display.round_started(4, 9)
    display.progress(5, 20, 0.7)
    display.round_trained(4, UPDATE)
    text = caplog.text
    assert "version 3 on 40 examples of mood: accuracy 0.7500  loss 0.2500" in text
    assert "round 4: mood trained on 640 examples in 20 steps, loss 0.5000, 1.5 s" in text
    assert "sending 0 tensors" in text


@pytest.mark.parametrize("end", ["trained", "closed", "next round"])
def test_a_bar_is_taken_away_however_the_round_ends(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    display = Display(terminal=True)
    display.round_started(1, 2)
    display.progress(1, 10, 0.5)
    match end:
        case "trained":
            display.round_trained(1, UPDATE)
        case "closed":
            display.close()
            display.close()
        case _:
            display.round_started(2, 2)
            display.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), "it still draws"
    display.progress(2, 10, 0.5)  # late, from the training thread
    assert capsys.readouterr().out == "", "standard output is for results"
