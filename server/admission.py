"""Which clients and which updates the server lets in: pure checks, each refusal by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from common.errors import ProtocolError, UpdateRejected
from common.messages import PROTOCOL_VERSION, Finished, UpdateHeader
from common.plan import SharingPlan, Slice
from common.tensors import require_match


class RunIsOver(Exception):
    """A client says hello when there is nothing left to do."""

    def __init__(self, message: Finished) -> None:
        super().__init__(message.reason)
        self.message = message


def agree_on_protocol(offered: Sequence[int]) -> int:
    """The newest protocol version that both ends speak; `ProtocolError` (protocol_version) when none is."""
    if PROTOCOL_VERSION not in offered:
        raise ProtocolError(
            "protocol_version", f"this server speaks version {PROTOCOL_VERSION}, the client offers {list(offered)}"
        )
    return PROTOCOL_VERSION


def agree_on_encoding(offered: Sequence[str], direction: str) -> str:
    """The transfer encoding for one direction; `ProtocolError` (encoding) when none is common."""
    if "raw" not in offered:
        raise ProtocolError("encoding", f"{direction}: this server speaks raw, the client offers {list(offered)}")
    return "raw"


def assign_tasks(client_id: str, requested: Sequence[str], configured: Collection[str]) -> frozenset[str]:
    """The tasks of a client: those it names, or the one whose name is a part of its id.

    Raises:
        ProtocolError: `unknown_task`, listing the configured tasks.
    """
    allowed = ", ".join(sorted(configured))
    if requested:
        unknown = sorted(set(requested) - set(configured))
        if unknown:
            raise ProtocolError("unknown_task", f"no task {', '.join(unknown)}; this run has: {allowed}")
        return frozenset(requested)
    matches = sorted(task for task in configured if task in client_id)
    if len(matches) != 1:
        found = f"{', '.join(matches)} all are part" if matches else "no task name is a part"
        raise ProtocolError(
            "unknown_task",
            f"{found} of the client id {client_id!r}; name the tasks with --tasks, this run has: {allowed}",
        )
    return frozenset(matches)


def check_update(
    header: UpdateHeader, *, run_id: str, plan: SharingPlan, slice_: Slice, tasks: frozenset[str], full: bool
) -> None:
    """Refuse an announced update that does not fit the run, before its bytes come.

    Args:
        header: what the client announces.
        run_id: the run that is going on.
        plan: the sharing plan of the round that the update is of.
        slice_: the slice the client was sent.
        tasks: the client's tasks.
        full: the client synchronises the whole model: deltas of slots it does not train are taken
            off the wire and weigh nothing. Slots that nobody may train are refused from it too.

    Raises:
        UpdateRejected: with the protocol's name of what is wrong.
    """
    if header.run_id != run_id:
        raise UpdateRejected("stale_round", f"the update is for run {header.run_id!r}, this is {run_id!r}")
    if header.plan != plan.digest:
        raise UpdateRejected(
            "plan_mismatch", f"the update was made under plan {header.plan}, that of its round is {plan.digest}"
        )
    if header.version != header.round - 1:
        raise UpdateRejected("stale_version", f"round {header.round} starts from version {header.round - 1}")
    if foreign := sorted(header.tasks.keys() - tasks):
        raise UpdateRejected("task_not_allowed", f"the client may train {sorted(tasks)}, not {foreign}")
    if not any(task.num_examples for task in header.tasks.values()):
        raise UpdateRejected("malformed", "an update with no training example")
    seen: set[str] = set()
    in_slice = {slot.id: slot for slot in slice_.travelling}
    for tensor in header.tensors:
        slot = in_slice.get(tensor.slot)
        if slot is None:
            known = plan.by_id.get(tensor.slot)
            if known is None:
                raise UpdateRejected("unknown_slot", f"slot {tensor.slot!r} is not in the plan")
            where = "lives on its clients" if known.residence == "client" else "belongs to other tasks"
            raise UpdateRejected("task_not_allowed", f"slot {tensor.slot!r} {where}")
        if not slot.trained_by:
            raise UpdateRejected("task_not_allowed", f"slot {tensor.slot!r} is frozen: nobody may train it")
        if not full and not slot.trained_by & header.tasks.keys():
            raise UpdateRejected("task_not_allowed", f"slot {tensor.slot!r} is not trained by {sorted(header.tasks)}")
        if tensor.slot in seen or tensor.held:
            raise UpdateRejected("malformed", f"slot {tensor.slot!r} comes twice, or without its elements")
        seen.add(tensor.slot)
        require_match(tensor, slot.shape, slot.dtype)
