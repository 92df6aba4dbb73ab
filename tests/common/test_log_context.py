"""A record says what it is about: process, task and call, each overruling the one before."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from common import log_context
from common.log_context import LogContextFilter, bind_log_context, set_log_context, with_log_context


@pytest.fixture(autouse=True)
def own_process_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets for the process ends with it."""
    monkeypatch.setattr(log_context, "_process", {})


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of its own whose records are kept."""
    logger = logging.Logger("test")  # not to be found by other tests
    handler = _Kept()
    handler.addFilter(LogContextFilter())
    logger.addHandler(handler)
    yield logger
    handler.close()


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.facts: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.facts.append({name: getattr(record, name) for name in log_context.FIELDS if hasattr(record, name)})


def facts(logger: logging.Logger) -> list[dict[str, object]]:
    """The context of every record so far."""
    (handler,) = logger.handlers
    assert isinstance(handler, _Kept)
    return handler.facts


def test_a_call_overrules_its_task_and_a_task_its_process(log: logging.Logger) -> None:
    set_log_context(run_id="r", round=1)

    async def talk() -> None:
        bind_log_context(client_id="c", round=2)
        log.warning("one")
        log.warning("two", extra={"round": 3, "code": "busy"})

    asyncio.run(talk())
    log.warning("three")
    set_log_context(round=None)
    log.warning("four")
    assert facts(log) == [
        {"run_id": "r", "round": 2, "client_id": "c"},
        {"run_id": "r", "round": 3, "client_id": "c", "code": "busy"},
        {"run_id": "r", "round": 1},
        {"run_id": "r"},
    ]


def test_tasks_side_by_side_keep_their_own_client(log: logging.Logger) -> None:
    async def connection(client_id: str, turn: asyncio.Event, other: asyncio.Event) -> None:
        bind_log_context(client_id=client_id)
        other.set()
        await turn.wait()
        await asyncio.create_task(part())

    async def part() -> None:
        log.warning("from a task that the connection started")

    async def both() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        await asyncio.gather(connection("a", first, second), connection("b", second, first))
        log.warning("from the task around them")

    asyncio.run(both())
    seen = facts(log)
    assert sorted(str(each.get("client_id")) for each in seen[:2]) == ["a", "b"]
    assert seen[2] == {}


def test_a_thread_sees_the_task_only_when_its_work_is_handed_over(log: logging.Logger) -> None:
    set_log_context(run_id="r")

    async def talk() -> None:
        bind_log_context(client_id="c")
        for work in (log.warning, with_log_context(log.warning)):
            thread = threading.Thread(target=work, args=("from a thread",))
            thread.start()
            thread.join()

    asyncio.run(talk())
    assert facts(log) == [{"run_id": "r"}, {"run_id": "r", "client_id": "c"}]


def test_unknown_fields_are_refused_by_name() -> None:
    for sets in (set_log_context, bind_log_context):
        with pytest.raises(ValueError, match="user: a log record has the fields run_id, round, client_id, code"):
            sets(user="x")
