"""The model as the server holds it: one value per slot, and its encoded form.

Of a slot that lives on the clients it is the first value, for clients that have none of their own yet; no round moves
it.

Encoding is a view of the value plus a checksum, made once per version; the same buffers go to every
client. Memory is one model, and while a round is folded the next value of every slot that moves beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from common.control_variates import without_controls, zero_controls
from common.errors import PlanError
from common.messages import base_digest
from common.plan import SharingPlan, Slice, Slot
from common.tensors import EncodedTensor
from common.torch_tensors import dtype_name, encode


class ModelState:
    """The current version of the model.

    Args:
        plan: the sharing plan that this version is stored with: that of the round that starts from it.
        values: slot id to value, for every slot.
        version: number of rounds that made these values.

    Raises:
        PlanError: the values are not exactly the plan's, in name, shape or dtype.
    """

    def __init__(self, plan: SharingPlan, values: Mapping[str, Tensor], version: int) -> None:
        wanted = {slot.id: slot for slot in plan.slots}
        if wanted.keys() != values.keys():
            odd = sorted(wanted.keys() ^ values.keys())
            raise PlanError(f"the values do not fit the plan: {odd[:3]} and {max(0, len(odd) - 3)} more differ")
        for slot_id, slot in wanted.items():
            found = (tuple(values[slot_id].shape), dtype_name(values[slot_id]))
            if found != (slot.shape, slot.dtype):
                raise PlanError(f"slot {slot_id!r} is {slot.shape} {slot.dtype} in the plan, its value is {found}")
        self.plan = plan
        self.version = version
        self._values = {slot_id: values[slot_id] for slot_id in wanted}
        self._encoded: dict[str, EncodedTensor] = {}
        self._digests: dict[frozenset[str], str] = {}

    @classmethod
    def initial(cls, plan: SharingPlan, parameters: Mapping[str, Tensor]) -> ModelState:
        """Version 0: every slot starts from its parameter's initial value (copies share memory)."""
        known = {**parameters, **zero_controls(plan)}
        return cls(plan, {slot.id: known[slot.parameter] for slot in plan.slots}, version=0)

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Slot id to value; not to be changed in place."""
        return self._values

    def for_task(self, task: str, *, first_values: bool = False) -> dict[str, Tensor]:
        """Parameter name to value, for what the forward pass of one task reads.

        Args:
            task: the task.
            first_values: also those of slots that live on the clients; they are what clients begin with.
        """
        return {
            slot.parameter: self._values[slot.id]
            for slot in without_controls(self.plan.slice({task})).slots
            if slot.residence == "server" or first_values
        }

    def encode(self) -> None:
        """Make the encoded form of every slot now: called off the event loop, as checksums take time."""
        for slot_id in self._values:
            self.encoded(slot_id)

    def encoded(self, slot_id: str) -> EncodedTensor:
        """The transfer form of one slot, made once per version."""
        found = self._encoded.get(slot_id)
        if found is None:
            found = self._encoded[slot_id] = encode(slot_id, self._values[slot_id])
        return found

    def digest_of(self, slice_: Slice) -> str:
        """32 hex digits that say which values a slice has in this version."""
        found = self._digests.get(slice_.tasks)
        if found is None:
            found = self._digests[slice_.tasks] = base_digest(tensor.header for tensor in self.encoded_slice(slice_))
        return found

    def encoded_slice(self, slice_: Slice) -> list[EncodedTensor]:
        """The slots of a slice, in slice order.

        Those that live on the client are among them: what a client holds is not sent again, so their first values cross
        the wire once, whoever joins when, and nobody needs to know who has which.
        """
        return [self.encoded(slot.id) for slot in slice_.slots]

    def advance(
        self,
        step: Callable[[Slot, Tensor], Tensor],
        plan: SharingPlan | None = None,
        settle: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Move to the next version; a slot for which `step` returns its value stays.

        Args:
            step: called with each slot, as the plan until now has it, and its value.
            plan: the next version's plan; may differ in what is frozen, and in nothing else. None: as it is.
            settle: called once with slot id to next value, of all slots; gives those that are to be others still.

        All slots move or none: when `step` or `settle` raises, version and values are what they were. So the next
        values are held beside the old ones until the last is there, at most one more model in memory.

        Raises:
            PlanError: the next plan has other slots.
        """
        if plan is not None and _places(plan) != _places(self.plan):
            raise PlanError("a version's plan may differ from that of the version before in frozen slots only")
        moved: dict[str, Tensor] = {}
        for slot in self.plan.slots:
            if slot.id in self._values:
                value = step(slot, self._values[slot.id])
                if value is not self._values[slot.id]:
                    moved[slot.id] = value
        if settle is not None:
            moved |= settle({**self._values, **moved})
        for slot_id, value in moved.items():
            self._encoded.pop(slot_id, None)
            self._values[slot_id] = value
        self._digests.clear()
        self.plan = self.plan if plan is None else plan
        self.version += 1


def _places(plan: SharingPlan) -> dict[str, str]:
    return {slot.id: slot.residence for slot in plan.slots}
