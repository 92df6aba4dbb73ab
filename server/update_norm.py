"""How long an update is: the L2 norm over everything in it that weighs in the round."""

from __future__ import annotations

import math

from common.plan import SharingPlan
from server.aggregation.blocks import BlockPool
from server.aggregation.distances import squared_norm
from server.spool import SpooledUpdate


def update_norm(update: SpooledUpdate, plan: SharingPlan) -> float:
    """The L2 norm of an update's deltas, all slots together.

    Blocks: call it off the event loop. The file is read once, by a handle of its own, in one thread, block by block
    (under 1 MiB in memory). Sums are float64, over blocks of the slot's elements and then in the order of slot
    ids: how the client cut or ordered its tensors, and whether it sent rows or all elements, changes no bit.

    Args:
        update: committed to the spool; may be open or closed, and stays so.
        plan: the plan that the update was made under. Slots that no task of the update trains (a client that
            synchronises the whole model sends them too) weigh nothing in the round and do not count, nor do integers.

    Returns:
        at least 0; infinite when the squares of a float64 slot are too large for float64.

    Raises:
        SpoolError: the file is gone, torn or not what its header says.
        OSError: it can't be opened or read.
    """
    tasks = {task for task, done in update.header.tasks.items() if done.num_examples}
    trained = {slot.id for slot in plan.slots if slot.trained_by & tasks}
    tensors = sorted((tensor for tensor in update.header.tensors if tensor.slot in trained), key=lambda t: t.slot)
    pool = BlockPool(threads=1)
    own = SpooledUpdate.load(update.path)
    own.open()
    try:
        squares = [
            squared_norm(own.delta(tensor.slot), math.prod(tensor.shape), pool)
            for tensor in tensors
            if "float" in tensor.dtype
        ]
    finally:
        own.close()
    return math.sqrt(sum(squares, start=0.0))
