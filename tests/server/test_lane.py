"""The worker thread: order, and writes that wait for room; on the server's loop and on asyncio's own."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.event_loop import loop_factory
from server import lane
from server.lane import SPARE_BYTES, Lane, NoRoom, has_room, no_room

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["server's loop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Runs coroutines on one loop or the other."""
    factory = loop_factory() if request.param == "server's loop" else None
    with asyncio.Runner(loop_factory=factory or asyncio.new_event_loop) as made:
        yield made


class Disk:
    """How much room there is, as a test says; notes how much was looked for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.looked_for: list[int] = []
        self.looked = threading.Event()

    def has_room(self, folder: Path, nbytes: int) -> bool:
        del folder
        self.looked_for.append(nbytes)
        self.looked.set()
        return nbytes <= self.room


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Full; looked at without a pause in between."""
    made = Disk(0)
    monkeypatch.setattr(lane, "PROBE_S", 0.001)
    monkeypatch.setattr(lane, "has_room", made.has_room)
    return made


class Situation:
    """A lane in a folder, what it said, and writes that find the disk full so many times."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.lane = Lane(folder, self.said.append, lambda: self.said.append("roomy"))
        self.tries = 0

    def write(self, error: Exception, times: int) -> int:
        """Fail so many times, then say how often it was tried."""
        self.tries += 1
        if self.tries <= times:
            raise error
        return self.tries


def sqlite_full(folder: Path) -> sqlite3.Error:
    """What sqlite3 raises when a database may not grow."""
    connection = sqlite3.connect(folder / "full.db", isolation_level=None)
    connection.execute("CREATE TABLE t (x BLOB)")
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    return caught.value


def sqlite_broken() -> sqlite3.Error:
    """What sqlite3 raises for another reason."""
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("SELECT * FROM nothing")
    connection.close()
    return caught.value


def test_work_is_done_in_order_in_one_thread(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def situation() -> None:
        on = Situation(tmp_path)
        done: list[tuple[int, str]] = []
        gate = threading.Event()

        def work(number: int) -> int:
            gate.wait(10)
            done.append((number, threading.current_thread().name))
            return number

        pieces = [asyncio.ensure_future((on.lane.run, on.lane.write)[n % 2](work, n)) for n in range(20)]
        await asyncio.sleep(0)
        assert on.lane.waiting == 20
        gate.set()
        assert await asyncio.gather(*pieces) == list(range(20))
        assert [number for number, _ in done] == list(range(20))
        assert {name for _, name in done} == {"fedmtl-lane_0"}
        assert on.lane.waiting == 0
        on.lane.close()

    runner.run(situation())


def test_what_work_raises_is_raised_and_no_longer_waits(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def situation() -> None:
        on = Situation(tmp_path)
        errors: list[Exception] = [OSError(errno.EIO, "broken"), sqlite_broken(), ValueError("x")]
        for error in [*errors, FULL]:
            with pytest.raises(type(error)) as caught:
                await on.lane.run(on.write, error, 99)
            assert caught.value is error
        for error in [*errors, OSError(errno.EACCES, "no"), SafetensorError("bad")]:
            with pytest.raises(type(error)) as caught:
                await on.lane.write(on.write, error, 99)
            assert caught.value is error
        assert on.said == []
        assert on.lane.waiting == 0
        on.lane.close()

    runner.run(situation())


@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT", "sqlite3", "safetensors"])
def test_a_write_without_room_is_done_again_when_there_is(
    runner: asyncio.Runner, disk: Disk, tmp_path: Path, kind: str
) -> None:
    errors: dict[str, Callable[[], Exception]] = {
        "ENOSPC": lambda: FULL,
        "EDQUOT": lambda: OSError(errno.EDQUOT, "Disk quota exceeded"),
        "sqlite3": lambda: sqlite_full(tmp_path),
        "safetensors": lambda: SafetensorError("I/O error: No space left on device (os error 28)"),
    }

    async def situation() -> None:
        on = Situation(tmp_path)
        writing = asyncio.ensure_future(on.lane.write(on.write, errors[kind](), 1))
        await asyncio.to_thread(disk.looked.wait, 10)
        assert len(on.said) == 1
        assert "roomy" not in on.said
        assert not writing.done()
        assert await on.lane.run(lambda: "read") == "read", "reading goes on"
        disk.room = 1 << 40
        assert await writing == 2
        assert on.said[1:] == ["roomy"]
        assert disk.looked_for[0] == 2 * SPARE_BYTES
        on.lane.close()

    runner.run(situation())


def test_what_does_not_fit_again_looks_for_more_each_time(runner: asyncio.Runner, disk: Disk, tmp_path: Path) -> None:
    async def situation() -> None:
        on = Situation(tmp_path)
        disk.room = 1 << 40
        assert await on.lane.write(on.write, FULL, 3) == 4
        assert disk.looked_for == [2 * SPARE_BYTES, 3 * SPARE_BYTES, 5 * SPARE_BYTES]
        assert on.said == ["No space left on device", "roomy"] * 3
        on.lane.close()

    runner.run(situation())


def test_many_writes_without_room_are_one_pause(runner: asyncio.Runner, disk: Disk, tmp_path: Path) -> None:
    async def situation() -> None:
        on = Situation(tmp_path)
        writing = [asyncio.ensure_future(on.lane.write(on.write, FULL, 5)) for _ in range(5)]
        await asyncio.to_thread(disk.looked.wait, 10)
        while on.tries < 5:
            await on.lane.run(int)
        for nbytes in (1 << 30, 1):
            on.lane.out_of_room("an upload", nbytes)
        disk.looked.clear()
        await asyncio.to_thread(disk.looked.wait, 10)
        disk.room = 1 << 40
        assert sorted(await asyncio.gather(*writing)) == [6, 7, 8, 9, 10]
        assert on.said == ["No space left on device", "roomy"]
        assert disk.looked_for[-1] == (1 << 30) + SPARE_BYTES, "room for the largest of them"
        on.lane.close()

    runner.run(situation())


def test_who_is_told_to_stop_gives_a_write_without_room_up(runner: asyncio.Runner, disk: Disk, tmp_path: Path) -> None:
    async def situation() -> None:
        on = Situation(tmp_path)
        writing = asyncio.ensure_future(on.lane.write(on.write, FULL, 99))
        await asyncio.to_thread(disk.looked.wait, 10)
        on.lane.stop_waiting()
        with pytest.raises(NoRoom, match="No space left"):
            await writing
        tries = on.tries
        with pytest.raises(NoRoom):
            await on.lane.write(on.write, FULL, 99)
        assert on.tries == tries + 1, "tried once, for there may be room"
        assert on.said == ["No space left on device"]
        on.tries = 99
        assert await on.lane.write(on.write, FULL, 99) == 100
        on.lane.close()

    runner.run(situation())


def test_close_waits_for_the_work_that_is_under_way(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def situation() -> None:
        on = Situation(tmp_path)
        begun, gate, done = threading.Event(), threading.Event(), list[str]()

        def work() -> None:
            begun.set()
            gate.wait(10)
            done.append("work")

        working = asyncio.ensure_future(on.lane.run(work))
        await asyncio.to_thread(begun.wait, 10)
        threading.Timer(0.05, gate.set).start()
        on.lane.close()
        assert done == ["work"]
        await working

    runner.run(situation())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("(os error 28)"), SafetensorError("os error 2")])
def test_other_errors_are_no_want_of_room(error: Exception) -> None:
    assert no_room(error) is None


def test_room_is_looked_for_without_leaving_anything(tmp_path: Path) -> None:
    assert has_room(tmp_path, 1 << 16)
    assert list(tmp_path.iterdir()) == []
    assert not has_room(tmp_path / "nowhere", 1)


# --- a real file system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607


def fill(path: Path) -> None:
    """Write until not a byte fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def test_a_real_disk_says_how_much_fits(small_disk: Path) -> None:
    assert has_room(small_disk, 1 << 20)
    assert not has_room(small_disk, 1 << 23)
    assert list(small_disk.iterdir()) == [], "nor does what did not fit stay"
    fill(small_disk / "ballast")
    assert not has_room(small_disk, 1)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_every_library_says_in_its_way_that_a_real_disk_is_full(small_disk: Path) -> None:
    """The texts and codes that `no_room` knows are those that the libraries use."""
    database = sqlite3.connect(small_disk / "run.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE t (x BLOB)")
    fill(small_disk / "ballast")
    with pytest.raises(OSError, match="No space") as from_system:
        (small_disk / "file").write_bytes(bytes(1 << 16))
    with pytest.raises(sqlite3.OperationalError) as from_sqlite:
        database.execute("INSERT INTO t VALUES (zeroblob(1000000))")
    with pytest.raises(SafetensorError) as from_safetensors:
        save_file({"w": torch.zeros(1 << 16)}, small_disk / "model.tmp")
    database.close()
    for error in (from_system.value, from_sqlite.value, from_safetensors.value):
        assert no_room(error), repr(error)


def test_a_write_waits_until_a_real_disk_has_room(
    runner: asyncio.Runner, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "PROBE_S", 0.001)
    ballast, target = small_disk / "ballast", small_disk / "file"
    fill(ballast)

    async def situation() -> None:
        full = asyncio.Event()
        on = Lane(small_disk, lambda _: full.set(), lambda: None)
        writing = asyncio.ensure_future(on.write(target.write_bytes, bytes(1 << 16)))
        await full.wait()
        ballast.unlink()
        assert await writing == 1 << 16
        assert target.stat().st_size == 1 << 16
        on.close()

    runner.run(situation())
