"""What may come when: every phase with every message."""

from __future__ import annotations

import pytest

from common.errors import ProtocolError
from common.messages import (
    MESSAGE_TYPES,
    Chunk,
    DataReport,
    Declined,
    EvaluationReport,
    Finished,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Progress,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    UpdateAck,
    UpdateHeader,
    Welcome,
    Work,
)
from server.link import Link, LinkPhase

MESSAGES: list[Message] = [
    Hello(protocol=(1,), client_id="c"),
    Ready(tasks={"a": DataReport(train=1, validation=1, source="s")}),
    EvaluationReport(round=1, version=0, tasks={}),
    UpdateHeader(run_id="r", round=1, version=0, plan="ab", stream=1, tasks={}, tensors=()),
    Chunk(stream=1, tensor=0, offset=0, data=b"12345678"),
    Declined(round=1, reason=""),
    Progress(round=1, done_steps=1, total_steps=2),
    Heartbeat(sequence=1),
    Goodbye(reason=""),
    Welcome(
        protocol=1, run_id="r", client_id="c", tasks=("a",), seed=0, target_rounds=1, heartbeat_s=1.0, silence_s=2.0,
        chunk_bytes=8, specs={}, family={},
    ),
    Work(
        run_id="r", round=1, version=0, target_rounds=1, plan="ab", slice={}, evaluate=False, stream=1, tensors=(),
    ),
    UpdateAck(round=1, version=0, update="ab"),
    RoundClosed(round=1, reason=""),
    Rejected(code="c", reason=""),
    Refusal(code="c", reason=""),
    Finished(state="finished", reason="", rounds_completed=1),
]  # fmt: skip
#: By hand from docs/protocol.md, section 3: phase and message to the next phase; all else is refused.
ALLOWED = {
    ("connected", "hello"): "preparing",
    ("connected", "goodbye"): "closed",
    ("preparing", "ready"): "active",
    ("preparing", "heartbeat"): "preparing",
    ("preparing", "goodbye"): "closed",
    ("active", "evaluation"): "active",
    ("active", "update"): "active",
    ("active", "chunk"): "active",
    ("active", "declined"): "active",
    ("active", "progress"): "active",
    ("active", "heartbeat"): "active",
    ("active", "goodbye"): "closed",
}


def test_the_messages_are_all_there_are() -> None:
    assert {message.type for message in MESSAGES} == MESSAGE_TYPES.keys()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
@pytest.mark.parametrize("phase", LinkPhase, ids=lambda phase: phase.value)
def test_every_message_in_every_phase(phase: LinkPhase, message: Message) -> None:
    link = Link()
    link.phase = phase
    wanted = ALLOWED.get((phase.value, message.type))
    if wanted is not None:
        link.take(message)
        assert link.phase.value == wanted
        return
    with pytest.raises(ProtocolError) as raised:
        link.take(message)
    assert raised.value.code == "out_of_order"
    assert repr(message.type) in raised.value.reason
    for allowed_in, name in ALLOWED:
        assert allowed_in != phase.value or name in raised.value.reason
    assert link.phase is phase, "a refused message changes nothing"
