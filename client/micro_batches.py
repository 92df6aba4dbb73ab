"""A batch in pieces that are computed one after the other: the memory of a piece, the step of the whole."""

from __future__ import annotations

from collections.abc import Iterator

from client.batches import Batch


def pieces(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Cut a batch into parts of at most `size` examples, in order; a part of a mixed batch may hold several tasks.

    Args:
        batch: at least one example.
        size: at least 1; None for one part, the batch itself. Rows that are several tasks' count once.
    """
    rows_of_all = len(next(iter(batch.rows.values()))) if batch.same_rows else len(batch)
    if size is None or rows_of_all <= size:
        yield batch
        return
    if batch.same_rows:
        for start in range(0, rows_of_all, size):
            yield Batch({task: rows[start : start + size] for task, rows in batch.rows.items()}, same_rows=True)
        return
    for start in range(0, len(batch), size):
        part, first = {}, 0
        for task, rows in batch.rows.items():
            # Rows of all tasks are counted through, this task's from `first` on.
            chosen = rows[max(0, start - first) : max(0, start + size - first)]
            first += len(rows)
            if len(chosen):
                part[task] = chosen
        yield Batch(part)
