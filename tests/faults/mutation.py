"""Valid things made invalid, by a seeded `random.Random`: bytes flipped, and structures with one node replaced."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgpack
import xxhash

from common.messages import MAX_NESTING
from common.wire import MAX_ITEMS


def _nested(depth: int) -> object:
    value: object = 0
    for level in range(depth):
        value = {"k": value} if level % 3 == 0 else [value]
    return value


#: What no field expects, or what is just beyond a bound.
HOSTILE: Final[Sequence[object]] = (
    *(None, True, False, "", b"", 0, -1, 1, 0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *(2**31, 2**32, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), [], {}, [[]], {"": None}, {"type": "chunk"}),
    *("\0", "\n2026 ERROR", "é" * 70, "\ud800", "../../etc", b"\xff\xfe", "raw", "rows", "float32"),
    *("x" * 5000, b"y" * 5000, {str(number): number for number in range(300)}, _nested(30), _nested(33), _nested(300)),
    *(msgpack.ExtType(4, b"ext"), msgpack.Timestamp(1)),
)
#: ... and what takes much memory or time, and is therefore rare.
LARGE: Final[Sequence[object]] = (
    *([0] * 20_000, [[]] * (MAX_ITEMS + 1), [[[]] * 1000] * 50, _nested(500), _nested(1100), "z" * 2**20),
)
#: Heads of msgpack's families that announce far more than follows.
_HEADS: Final = (b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x01\x00\x00", b"\xc6\xff\xff\xff\xff", b"\x91" * 600)


def hostile(chance: random.Random) -> object:
    """One of them."""
    return chance.choice(HOSTILE if chance.random() < 0.995 else LARGE)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node, but for those in what is nested deeper than anything valid."""
    found = [path]
    if len(path) > MAX_NESTING:
        return found
    if isinstance(value, Mapping):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            found += places(inner, (*path, index))
    return found


def with_change(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:  # noqa: ANN401  # plain data
    """A copy in which the node at `path` is `change` of what it was."""
    if not path:
        return change(value)
    if isinstance(value, Mapping):
        return {**value, path[0]: with_change(value[path[0]], path[1:], change)}
    items = list(value)
    items[path[0]] = with_change(items[path[0]], path[1:], change)
    return items


def mutate_structure(value: Any, chance: random.Random) -> Any:  # noqa: ANN401  # plain data
    """A copy with one to three nodes replaced, removed, repeated or given another type."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        value = with_change(value, chance.choice(places(value)), lambda node: _changed(node, chance))
    return value


def _changed(node: Any, chance: random.Random) -> Any:  # noqa: ANN401  # plain data
    kind = chance.randrange(6)
    if kind == 0 and isinstance(node, Mapping) and node:
        gone = chance.choice(list(node))
        return {key: value for key, value in node.items() if key != gone}
    if kind == 1 and isinstance(node, list | tuple) and node:
        return [*node, chance.choice(node)]
    if kind == 2 and isinstance(node, int):
        return node + chance.choice((-1, 1, 2**8, 2**32, -(2**31), node))
    if kind == 3 and isinstance(node, Mapping):
        return {**node, chance.choice(("extra", "type", "", "slot")): hostile(chance)}
    if kind == 4 and isinstance(node, str):
        return node + chance.choice(("@", "\0", "é", "x" * 300))
    return hostile(chance)


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """A copy with bits flipped, bytes replaced, cut out, repeated or appended."""
    mutated = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(mutated) + 1)
        end = min(len(mutated), at + chance.choice((1, 1, 2, 4, 8, 64)))
        match chance.randrange(5):
            case 0 if at < len(mutated):
                mutated[at] ^= 1 << chance.randrange(8)
            case 1:
                mutated[at:end] = chance.randbytes(end - at)
            case 2:
                del mutated[at:end]
            case 3:
                mutated[at:at] = mutated[at:end] * chance.choice((1, 2, 50))
            case _:
                mutated[at:at] = chance.choice(_HEADS)
    return bytes(mutated)


def sealed(body: bytes) -> bytes:
    """A body with its right checksum."""
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
