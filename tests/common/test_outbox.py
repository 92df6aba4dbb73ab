"""Short messages first, transfers frame by frame, nothing without bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from common.messages import Heartbeat, Progress
from common.outbox import MAX_WAITING, Outbox, OutboxFull
from common.wire import encode_frame

LONG_S = 20.0


def beat(number: int) -> Heartbeat:
    return Heartbeat(sequence=number)


async def taken(outbox: Outbox, count: int) -> list[bytes | None]:
    return [await outbox.next(LONG_S) for _ in range(count)]


async def test_messages_go_before_what_is_left_of_transfers() -> None:
    outbox = Outbox()
    outbox.put_transfer(iter([b"1", b"2"]))
    outbox.put_transfer(iter([b"3"]))
    assert await outbox.next(LONG_S) == b"1"
    outbox.put(beat(1))
    outbox.put(beat(2))
    assert await taken(outbox, 4) == [encode_frame(beat(1)), encode_frame(beat(2)), b"2", b"3"]


async def test_frames_are_built_when_they_are_asked_for() -> None:
    built = []

    def frames() -> Iterator[bytes]:
        for number in range(3):
            built.append(number)
            yield bytes([number])

    outbox = Outbox()
    outbox.put_transfer(frames())
    assert built == []
    await outbox.next(LONG_S)
    assert built == [0]


async def test_a_transfer_can_take_the_place_of_others_or_be_dropped() -> None:
    outbox = Outbox()
    outbox.put_transfer(iter([b"1", b"2"]))
    await outbox.next(LONG_S)
    outbox.put_transfer(iter([b"3", b"4"]), replace=True)
    assert await outbox.next(LONG_S) == b"3"
    outbox.put(beat(1))
    outbox.drop_transfers()
    assert await outbox.next(LONG_S) == encode_frame(beat(1))
    with pytest.raises(TimeoutError):
        await outbox.next(0.0)


async def test_close_lets_out_what_waits_and_then_ends() -> None:
    outbox = Outbox()
    outbox.put(beat(1))
    outbox.put_transfer(iter([b"1"]))
    outbox.close()
    assert await taken(outbox, 4) == [encode_frame(beat(1)), b"1", None, None]


@pytest.mark.parametrize("act", ["put", "transfer", "close"])
async def test_a_waiting_writer_wakes_up(act: str) -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.next(LONG_S))
    await asyncio.sleep(0)
    match act:
        case "put":
            outbox.put(beat(1))
        case "transfer":
            outbox.put_transfer(iter([b"1"]))
        case _:
            outbox.close()
    assert await waiting == {"put": encode_frame(beat(1)), "transfer": b"1", "close": None}[act]


async def test_an_empty_transfer_is_nothing() -> None:
    outbox = Outbox()
    outbox.put_transfer(iter([]))
    outbox.put_transfer(iter([b"1"]))
    assert await outbox.next(LONG_S) == b"1"


async def test_messages_that_nobody_takes_have_a_limit() -> None:
    outbox = Outbox()
    for number in range(MAX_WAITING):
        assert outbox.waiting == number
        outbox.put(Progress(round=1, done_steps=number, total_steps=1))
    with pytest.raises(OutboxFull):
        outbox.put(beat(1))
    await outbox.next(LONG_S)
    outbox.put(beat(1))
