"""Bytes per slot add up to bytes per group, and are counted once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.slot_traffic import SlotBytes, SlotTraffic, as_rows, by_group

SLOTS = {"e@q": "embeddings", "k@q": "layer.0", "v@q": "layer.0", "h@q": "head"}
PIECES = st.lists(st.tuples(st.sampled_from(sorted(SLOTS)), st.booleans(), st.integers(0, 2**40)), max_size=30)


@given(PIECES, PIECES)
def test_every_piece_is_counted_in_its_slot_group_and_round(
    first: list[tuple[str, bool, int]], second: list[tuple[str, bool, int]]
) -> None:
    traffic = SlotTraffic()
    for pieces in (first, second):
        for slot, down, nbytes in pieces:
            (traffic.sent if down else traffic.received)(slot, SLOTS[slot], nbytes)
        expected = {
            slot: (
                sum(n for s, down, n in pieces if s == slot and down),
                sum(n for s, down, n in pieces if s == slot and not down),
            )
            for slot, _, _ in pieces
        }
        before, taken = traffic.snapshot(), traffic.take()
        assert as_rows(before) == as_rows(taken)
        assert {slot: (count.down, count.up) for slot, count in taken.items()} == expected
        groups = by_group(taken)
        for side in ("down", "up"):
            assert sum(group[side] for group in groups.values()) == sum(
                n for _, d, n in pieces if d == (side == "down")
            )
        assert groups.keys() == {SLOTS[slot] for slot in expected}


def test_updates_that_were_found_count_once_whether_they_were_written_down_or_not() -> None:
    pieces = [("e@q", "embeddings", 40), ("h@q", "head", 4), ("h@q", "head", 4)]
    killed = SlotTraffic()
    stopped = SlotTraffic({"e@q": SlotBytes("embeddings", 70, 50), "h@q": SlotBytes("head", 7, 8)})
    for traffic in (killed, stopped):
        traffic.received_before(pieces)
    assert killed.take() == {"e@q": SlotBytes("embeddings", 0, 40), "h@q": SlotBytes("head", 0, 8)}
    assert stopped.take() == {"e@q": SlotBytes("embeddings", 70, 50), "h@q": SlotBytes("head", 7, 8)}


def test_a_snapshot_does_not_move_on() -> None:
    traffic = SlotTraffic()
    traffic.sent("e@q", "embeddings", 1)
    before = traffic.snapshot()
    traffic.sent("e@q", "embeddings", 1)
    assert before["e@q"].down == 1
