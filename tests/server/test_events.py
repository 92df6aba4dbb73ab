"""Events, recorded in order and handed to whoever listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.events import BACKLOG, EventFeed


class Book:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, Mapping[str, Any]]] = []

    def record(self, number: int, kind: str, detail: Mapping[str, Any]) -> None:
        self.rows.append((number, kind, detail))


async def test_numbers_go_on_from_the_history() -> None:
    book = Book()
    feed = EventFeed(41, book.record)
    feed.publish("note", {"text": "a"})
    feed.publish("note", {"text": "b"})
    assert book.rows == [(42, "note", {"text": "a"}), (43, "note", {"text": "b"})]


async def test_every_listener_gets_what_comes_while_it_listens() -> None:
    feed = EventFeed(0, Book().record)
    feed.publish("before", {})
    with feed.listening() as one:
        feed.publish("first", {"n": 1})
        with feed.listening() as two:
            feed.publish("second", {})
        feed.publish("third", {})
    feed.publish("after", {})
    assert [one.get_nowait()["kind"] for _ in range(one.qsize())] == ["first", "second", "third"]
    assert two.get_nowait() == {"id": 3, "kind": "second"}
    assert two.empty()


async def test_a_listener_that_does_not_read_holds_nobody_up_and_has_a_limit() -> None:
    book = Book()
    feed = EventFeed(0, book.record)
    with feed.listening() as slow:
        for number in range(BACKLOG + 10):
            feed.publish("note", {"n": number})
        assert slow.qsize() == BACKLOG
        assert len(book.rows) == BACKLOG + 10
        assert slow.get_nowait()["n"] == 0
        feed.publish("again", {})
        assert slow.qsize() == BACKLOG
