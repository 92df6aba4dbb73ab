"""Named one-shot timers, on the event loop's own clock."""

from __future__ import annotations

import asyncio

from server.timers import Timers

LONG_S = 1000.0


async def test_a_timer_fires_once_under_its_name() -> None:
    fired: asyncio.Queue[str] = asyncio.Queue()
    timers = Timers(fired.put_nowait)
    timers.start("late", 0.02)
    timers.start("soon", 0.0)
    assert await fired.get() == "soon"
    assert await fired.get() == "late"
    assert fired.empty()


async def test_a_name_has_one_timer() -> None:
    fired: asyncio.Queue[str] = asyncio.Queue()
    timers = Timers(fired.put_nowait)
    timers.start("a", 0.0)
    timers.start("a", LONG_S)
    timers.start("b", 0.01)
    assert await fired.get() == "b", "the first a was replaced"
    timers.start("a", 0.0)
    assert await fired.get() == "a"


async def test_cancelled_timers_stay_silent() -> None:
    fired: asyncio.Queue[str] = asyncio.Queue()
    timers = Timers(fired.put_nowait)
    timers.cancel("never started")
    timers.start("a", 0.0)
    timers.start("b", 0.0)
    timers.cancel("a")
    assert await fired.get() == "b"
    timers.cancel("b")  # has fired
    timers.start("c", 0.0)
    timers.start("d", 0.0)
    timers.cancel_all()
    timers.start("e", 0.0)
    assert await fired.get() == "e"
    assert fired.empty()


async def test_a_timer_may_be_started_anew_as_it_fires() -> None:
    fired: asyncio.Queue[str] = asyncio.Queue()

    def again(name: str) -> None:
        fired.put_nowait(name)
        if fired.qsize() < 3:
            timers.start(name, 0.0)
        else:
            done.set()

    done = asyncio.Event()
    timers = Timers(again)
    timers.start("a", 0.0)
    await done.wait()
    assert fired.qsize() == 3
