"""Frozen values on disk: found when they are whole, gone when they are not, never in the way."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.frozen_values import FOLDER, FrozenValues
from common.tensors import payload_checksum
from common.value_key import ValueKey


def named(*payloads: bytes) -> dict[ValueKey, memoryview]:
    return {ValueKey(payload_checksum((p,)), len(p)): memoryview(p) for p in payloads}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / FOLDER).rglob("*") if path.is_file())


SMALL, LARGE = b"frozen" * 4, bytes(range(200)) * 50
BOTH = named(SMALL, LARGE)


def test_another_process_finds_what_one_has_kept(tmp_path: Path) -> None:
    FrozenValues(tmp_path).keep("run", BOTH)
    later = FrozenValues(tmp_path)
    assert set(later.listed("run")) == BOTH.keys()
    assert later.read("run", [*BOTH, ValueKey(1, 2)]) == BOTH
    assert later.listed("another run") == ()
    assert later.read("another run", BOTH) == {}
    assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o600, 0o600]


def test_nothing_is_written_twice_and_an_empty_value_never(tmp_path: Path) -> None:
    values = FrozenValues(tmp_path)
    values.keep("run", {**BOTH, **named(b"")})
    assert len(files(tmp_path)) == 2
    before = [path.stat().st_ino for path in files(tmp_path)]
    for again in (values, FrozenValues(tmp_path)):
        again.keep("run", BOTH)
        again.keep("run", named(SMALL))
        again.keep("run", BOTH)
    assert [path.stat().st_ino for path in files(tmp_path)] == before
    values.keep("a run's name/../..", named(SMALL))
    assert len(files(tmp_path)) == 3
    assert not list(tmp_path.parent.glob("*-24"))


@pytest.mark.parametrize("damage", ["altered", "torn", "gone"])
def test_a_damaged_file_is_not_held_and_is_written_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = FrozenValues(tmp_path)
    values.keep("run", BOTH)
    [path] = [path for path in files(tmp_path) if path.stat().st_size == len(LARGE)]
    content = bytearray(LARGE)
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(content if damage == "altered" else content[:-1])
    assert values.read("run", BOTH) == named(SMALL)
    assert values.listed("run") == tuple(named(SMALL))
    assert not path.exists()
    assert path.name in caplog.text
    values.keep("run", BOTH)
    assert values.read("run", BOTH) == BOTH
    assert set(values.listed("run")) == BOTH.keys()


def test_a_file_that_was_cut_off_is_not_listed(tmp_path: Path) -> None:
    values = FrozenValues(tmp_path)
    values.keep("run", BOTH)
    os.truncate(files(tmp_path)[0], 1)
    assert len(values.listed("run")) == 1
    assert len(files(tmp_path)) == 1


def test_a_spoilt_file_that_cannot_be_removed_is_not_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = FrozenValues(tmp_path)
    values.keep("run", named(SMALL))
    files(tmp_path)[0].write_bytes(b"x" * len(SMALL))

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "no", str(path), missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert values.read("run", named(SMALL)) == {}
    assert values.listed("run") == ()


def test_the_longest_unused_goes_first_and_nothing_of_the_present_work(tmp_path: Path) -> None:
    old, used, new, huge = (bytes([number]) * 1000 for number in range(4))
    values = FrozenValues(tmp_path, limit_bytes=2500)
    values.keep("old run", named(old))
    values.keep("run", named(used))
    for age, path in enumerate([*files(tmp_path)]):
        os.utime(path, (age, age))
    assert values.read("old run", named(old)) == named(old)  # so it was used later
    values.keep("new run", named(new))
    assert values.listed("old run") == tuple(named(old))
    assert values.listed("run") == ()
    values.keep("new run", named(new, huge, old))
    assert len(files(tmp_path)) == 2, "three do not fit, and what the work names does not make room for itself"
    assert set(values.listed("new run")) == named(new, huge).keys()
    FrozenValues(tmp_path, limit_bytes=0).keep("new run", named(old))
    assert len(files(tmp_path)) == 2


def test_a_run_that_is_over_is_forgotten(tmp_path: Path) -> None:
    values = FrozenValues(tmp_path)
    values.keep("run", BOTH)
    values.keep("other", BOTH)
    values.forget_run("run")
    values.forget_run("run")
    assert values.listed("run") == ()
    assert set(values.listed("other")) == BOTH.keys()
    values.keep("run", BOTH)
    assert set(values.listed("run")) == BOTH.keys()


def test_what_a_dead_process_left_half_written_goes_when_it_is_old(tmp_path: Path) -> None:
    values = FrozenValues(tmp_path)
    values.keep("run", named(SMALL))
    young, old = (tmp_path / FOLDER / "run" / f"{name}.partial" for name in ("young", "old"))
    young.write_bytes(b"1")
    old.write_bytes(b"2")
    os.utime(old, (0, 0))
    values.keep("run", BOTH)
    assert young.exists()
    assert not old.exists()
    assert set(values.listed("run")) == BOTH.keys()


def test_a_disk_that_cannot_be_written_costs_the_saving_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    values = FrozenValues(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            values.keep("run", BOTH)
            assert values.listed("run") == ()
            assert values.read("run", BOTH) == {}
            values.forget_run("run")
    assert caplog.text.count("--state-dir") == 1


def test_a_disk_that_fills_up_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = FrozenValues(tmp_path)

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(path), None, str(target))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        values.keep("run", BOTH)
    assert files(tmp_path) == []
    values.keep("run", BOTH)
    assert values.read("run", BOTH) == BOTH


def test_a_list_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.frozen_values.MAX_HELD", 2)
    values = FrozenValues(tmp_path)
    values.keep("run", named(b"1", b"22", b"333"))
    for path in files(tmp_path):
        os.utime(path, (_key(path).nbytes,) * 2)
    assert values.listed("run") == tuple(named(b"333", b"22")), "the last used come first"


def test_several_at_once_share_a_folder(tmp_path: Path) -> None:
    payloads = named(*(os.urandom(3000) for _ in range(20)))

    def one(number: int) -> bool:
        values = FrozenValues(tmp_path)
        values.keep("run", dict(sorted(payloads.items(), reverse=bool(number % 2))))
        return values.read("run", payloads) == payloads

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(8)))
    assert len(files(tmp_path)) == 20


PAYLOADS = [bytes([number]) * (10 * number + 10) for number in range(6)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "read", "listed", "forget", "restart", "alter", "cut", "remove", "age"]),
        st.sampled_from(["one", "two"]),
        st.frozensets(st.sampled_from(PAYLOADS), max_size=4),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(STEPS, st.sampled_from([0, 70, 120, 10_000]))
def test_whatever_happens_to_the_folder_only_true_values_come_back(
    steps: list[tuple[str, str, frozenset[bytes]]], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values, disturbed = FrozenValues(folder, limit), False
        for action, run, chosen in steps:
            wanted = named(*sorted(chosen))
            match action:
                case "keep":
                    values.keep(run, wanted)
                    _require_bounded(folder, limit)
                    if sum(map(len, chosen)) <= limit and not disturbed:
                        assert wanted.keys() <= {_key(path) for path in files(folder) if path.parent.name == run}
                case "read":
                    found = values.read(run, wanted)
                    assert found.items() <= wanted.items()
                    assert not (wanted.keys() - found.keys()) & set(values.listed(run)), "listed, and not to be had"
                case "listed":
                    _require_true(values.listed(run), named(*PAYLOADS))
                case "forget":
                    values.forget_run(run)
                case "restart":
                    values, disturbed = FrozenValues(folder, limit), False
                case _:
                    # What others remove behind its back a process notices when it reads, or lists at its next start.
                    disturbed = disturbed or action == "remove"
                    for number, path in enumerate(files(folder)):
                        if _key(path) in wanted:
                            _hurt(action, path, number)


def _require_bounded(folder: Path, limit: int) -> None:
    # A file that was damaged has another size than its name says.
    assert sum(path.stat().st_size for path in files(folder)) <= max(limit, 0) or not limit


def _require_true(listed: tuple[ValueKey, ...], all_: Mapping[ValueKey, memoryview]) -> None:
    assert set(listed) <= all_.keys()
    assert len(set(listed)) == len(listed)


def _key(path: Path) -> ValueKey:
    checksum, size = path.name.split("-")
    return ValueKey(int(checksum, 16), int(size))


def _hurt(how: str, path: Path, number: int) -> None:
    match how:
        case "alter":
            content = bytearray(path.read_bytes())
            if content:
                content[-1] ^= 255
            path.write_bytes(content)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "remove":
            path.unlink()
        case _:
            os.utime(path, (number, number))
