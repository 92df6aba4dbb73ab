"""Frozen slots come once to a client, whatever becomes of its connection or its process, over real sockets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from client.frozen_disk import frozen_values
from client.frozen_values import FOLDER, FrozenValues
from common.messages import EvaluationReport, Heartbeat, Ready
from common.plan import Slice
from common.tensors import EncodedTensor, encode_tensor
from common.value_key import ValueKey, unpack_keys
from common.wire import decode_frame
from tests.client.test_session import PLAN, Counting, Link, take_part

SLICE = PLAN.freeze([slot.id for slot in PLAN.slots if slot.parameter == "body"]).slice({"mood"})


def values(version: int) -> list[EncodedTensor]:
    """The body is frozen at 5, the head moves."""
    numbers = {"body": 5.0, "empty": 0.0, "heads.mood": float(version)}
    return [encode_tensor(slot.id, np.full(slot.shape, numbers[slot.parameter], np.float32)) for slot in SLICE.slots]


BODY = values(0)[0].header.key


async def met(link: Link) -> frozenset[ValueKey]:
    """Welcome a client; what it lists."""
    await link.welcome()
    return unpack_keys((await link.expect(Ready)).held)


async def evaluated(link: Link, version: int, tensors: list[EncodedTensor]) -> None:
    """Send work for evaluation, and see that the client has the right values: the mean of the body is 5."""
    await link.work(version + 1, train=False, tensors=tensors, slice_=SLICE)
    assert (await link.expect(EvaluationReport)).tasks["mood"].metrics == {"mean": 5.0}


async def test_a_client_lists_what_was_frozen_and_reads_it_when_it_is_held(tmp_path: Path) -> None:
    async def first(link: Link) -> None:
        assert await met(link) == frozenset()
        await evaluated(link, 0, values(0))
        await link.cut()

    async def second(link: Link) -> None:
        assert await met(link) == {BODY}, "frozen, so not the head"
        body, *others = values(1)
        await evaluated(link, 1, [body.as_held(), *others])
        await evaluated(link, 2, [tensor.as_held() for tensor in (body, *others)])
        await link.cut()

    async def of_another_life(link: Link) -> None:
        assert await met(link) == {BODY}
        body, *others = values(3)
        await evaluated(link, 3, [body.as_held(), *others])
        await link.finish()

    async def of_another_run(link: Link) -> None:
        await link.welcome(run_id="another")
        assert not (await link.expect(Ready)).held
        await link.finish()

    async def stopped(link: Link) -> None:
        await link.finish("failed")

    with pytest.raises(Exception, match="failed"):
        await take_part(Counting(), first, second, stopped, frozen=FrozenValues(tmp_path))
    await take_part(Counting(), of_another_run, frozen=FrozenValues(tmp_path))
    await take_part(Counting(), of_another_life, frozen=FrozenValues(tmp_path))
    assert not list((tmp_path / FOLDER).iterdir()), "the run is over, nothing of it is of use"


@pytest.mark.parametrize("damage", ["altered", "gone"])
async def test_a_value_that_was_lost_is_asked_for_again_once(tmp_path: Path, damage: str) -> None:
    frozen = FrozenValues(tmp_path)
    frozen.keep("run", frozen_values(SLICE, {t.header.slot: (t.header, t.parts[0]) for t in values(0) if t.parts}))
    [path] = (tmp_path / FOLDER / "run").iterdir()
    body, *others = values(0)

    async def first(link: Link) -> None:
        assert await met(link) == {BODY}
        path.unlink()
        if damage == "altered":
            path.write_bytes(bytes(BODY.nbytes))
        await link.work(1, train=False, tensors=[body.as_held(), *others], slice_=SLICE)
        with pytest.raises(ConnectionClosed):
            await link.receive()

    async def second(link: Link) -> None:
        assert await met(link) == frozenset()
        await evaluated(link, 0, [body, *others])
        await link.cut()

    async def third(link: Link) -> None:
        assert await met(link) == {BODY}, "it is on disk again"
        await link.finish()

    await take_part(Counting(), first, second, third, frozen=frozen)


async def test_no_long_frame_comes_right_after_the_hello(tmp_path: Path) -> None:
    FrozenValues(tmp_path).keep("run", {BODY: values(0)[0].parts[0]})

    async def script(link: Link) -> None:
        await link.welcome()
        frame = await link.socket.recv()
        assert isinstance(frame, bytes)
        assert isinstance(decode_frame(frame), Heartbeat)
        await link.expect(Ready)
        await link.finish()

    await take_part(Counting(), script, frozen=FrozenValues(tmp_path))


def test_a_slot_that_others_train_is_not_frozen() -> None:
    whole: Slice = PLAN.slice({"mood", "topic"})
    received = {t.header.slot: (t.header, t.parts[0]) for t in values(0) if t.parts}
    received["empty@mood+topic"] = (values(0)[1].header, memoryview(b""))
    assert frozen_values(whole, received) == {}
    assert frozen_values(SLICE, received).keys() == {BODY}


def test_first_values_of_what_clients_keep_to_themselves_are_kept_too() -> None:
    """The server's value of such a slot never changes, though its clients train theirs."""
    at_home = PLAN.reside([slot.id for slot in PLAN.slots if slot.parameter == "body"], "client").slice({"mood"})
    received = {t.header.slot: (t.header, t.parts[0]) for t in values(0) if t.parts}
    assert all(slot.trained_by for slot in at_home.slots if slot.parameter == "body")
    assert frozen_values(at_home, received).keys() == {BODY}
