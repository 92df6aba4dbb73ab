"""How refused rows are named in messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SHOWN: Final = 5


def rows_text(rows: Iterable[int]) -> str:
    """``data rows 3, 17, 20 and 12 more``: 1-based, header, comments and blank lines not counted."""
    numbers = [int(row) for row in rows]
    shown = ", ".join(str(number) for number in numbers[:SHOWN])
    more = f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else ""
    return f"data row{'s' if len(numbers) > 1 else ''} {shown}{more}"


def quoted(values: Iterable[object]) -> str:
    """``'a', 'b', 'c' and 4 more``: the first few distinct values as written in Python."""
    distinct = list(dict.fromkeys(repr(value) for value in values))
    more = f" and {len(distinct) - SHOWN:,} more" if len(distinct) > SHOWN else ""
    return ", ".join(distinct[:SHOWN]) + more
