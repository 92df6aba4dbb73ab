"""The sharing plan: which tasks share which stored copy of which parameter.

A **slot** is one stored copy of one parameter, held for a set of tasks. A **sharing plan** maps every
parameter to a partition of the tasks that use it; each part is one slot. A **slice** is what one client
needs: the slots its tasks use. All of it is immutable data; operations return new plans.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import ValidationError

from common.blueprint import Blueprint, ParameterSpec, Shape
from common.errors import PlanError
from common.plan_data import FORMAT, PlanData, Residence, SliceData, SlotData


@dataclass(frozen=True, slots=True)
class Slot:
    """One stored copy of one parameter.

    Attributes:
        spec: the parameter it is a copy of.
        tasks: the tasks whose forward pass reads this copy; never empty.
        residence: ``server`` (aggregated and sent) or ``client`` (each client keeps its own; it
            never travels, as in FedPer, FedBN or purely local training).
        frozen: no task may train it for now, whatever the blueprint allows.
    """

    spec: ParameterSpec
    tasks: frozenset[str]
    residence: Residence = "server"
    frozen: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise PlanError(f"a slot of {self.spec.name!r} has no task")
        if not self.tasks <= self.spec.used_by:
            extra = sorted(self.tasks - self.spec.used_by)
            raise PlanError(f"a slot of {self.spec.name!r} is held for {extra}, which do not use the parameter")

    @property
    def id(self) -> str:
        """``parameter@task+task``: says what the slot is, and is the same on both ends."""
        return f"{self.spec.name}@{'+'.join(sorted(self.tasks))}"

    @property
    def parameter(self) -> str:
        """The name of the parameter."""
        return self.spec.name

    @property
    def shape(self) -> Shape:
        """The dimensions of the tensor."""
        return self.spec.shape

    @property
    def dtype(self) -> str:
        """The element type by name."""
        return self.spec.dtype

    @property
    def trained_by(self) -> frozenset[str]:
        """The tasks whose loss may change this copy."""
        return frozenset() if self.frozen else self.spec.trained_by & self.tasks

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives the slot back."""
        return {
            "parameter": self.spec.name,
            "shape": list(self.spec.shape),
            "dtype": self.spec.dtype,
            "group": self.spec.group,
            "kind": self.spec.kind,
            "used_by": sorted(self.spec.used_by),
            "may_train": sorted(self.spec.trained_by),
            "tasks": sorted(self.tasks),
            "residence": self.residence,
            "frozen": self.frozen,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            PlanError: a field is missing or of the wrong kind.
        """
        try:
            given = SlotData.model_validate(data)
        except ValidationError as error:
            raise PlanError(f"not a slot: {error}") from error
        spec = ParameterSpec(
            name=given.parameter,
            shape=tuple(given.shape),
            dtype=given.dtype,
            used_by=frozenset(given.used_by),
            trained_by=frozenset(given.may_train),
            group=given.group,
            kind=given.kind,
        )
        return cls(spec, frozenset(given.tasks), given.residence, given.frozen)


@dataclass(frozen=True)
class Slice:
    """What one client holds: the slots that its tasks use, in plan order.

    Attributes:
        tasks: the client's tasks.
        slots: every slot that one of them uses. Under a split plan a client of two tasks may hold
            two slots of one parameter; `slot_of` says which task reads which.
    """

    tasks: frozenset[str]
    slots: tuple[Slot, ...]

    def slot_of(self, task: str, parameter: str) -> Slot:
        """The one slot of `parameter` that `task` reads.

        Raises:
            PlanError: there is none.
        """
        for slot in self.slots:
            if slot.parameter == parameter and task in slot.tasks:
                return slot
        raise PlanError(f"the slice of {sorted(self.tasks)} has no slot of {parameter!r} for task {task!r}")

    def for_task(self, task: str) -> dict[str, Slot]:
        """Parameter name to the slot that `task` reads, in plan order."""
        return {slot.parameter: slot for slot in self.slots if task in slot.tasks}

    @property
    def travelling(self) -> tuple[Slot, ...]:
        """The slots that the server aggregates: those whose deltas go up."""
        return tuple(slot for slot in self.slots if slot.residence == "server")

    @property
    def trainable(self) -> tuple[Slot, ...]:
        """The slots that one of the client's tasks may train."""
        return tuple(slot for slot in self.slots if slot.trained_by & self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives the slice back."""
        return {"tasks": sorted(self.tasks), "slots": [slot.to_dict() for slot in self.slots]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; raises `PlanError` on anything else."""
        try:
            given = SliceData.model_validate(data)
        except ValidationError as error:
            raise PlanError(f"not a slice: {error}") from error
        return cls(frozenset(given.tasks), tuple(Slot.from_dict(slot) for slot in given.slots))


@dataclass(frozen=True)
class SharingPlan:
    """Every parameter's partition of the tasks that use it.

    Invariants, checked on construction: for each parameter of the blueprint the tasks of its slots
    are disjoint and together exactly the tasks that use it, so every task finds exactly one slot of
    every parameter it uses.

    Attributes:
        blueprint: what is being shared.
        slots: in blueprint order, the slots of one parameter ordered by their first task.
    """

    blueprint: Blueprint
    slots: tuple[Slot, ...]
    by_id: Mapping[str, Slot] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = {parameter.name: position for position, parameter in enumerate(self.blueprint.parameters)}
        covered: dict[str, set[str]] = {name: set() for name in order}
        for slot in self.slots:
            if self.blueprint.by_name.get(slot.parameter) != slot.spec:
                raise PlanError(f"slot {slot.id!r} is not of a parameter of the blueprint")
            if twice := covered[slot.parameter] & slot.tasks:
                raise PlanError(f"tasks {sorted(twice)} have two slots of {slot.parameter!r}")
            covered[slot.parameter] |= slot.tasks
        for parameter in self.blueprint.parameters:
            if missing := parameter.used_by - covered[parameter.name]:
                raise PlanError(f"tasks {sorted(missing)} have no slot of {parameter.name!r}")
        in_order = sorted(self.slots, key=lambda slot: (order[slot.parameter], min(slot.tasks)))
        object.__setattr__(self, "slots", tuple(in_order))
        object.__setattr__(self, "by_id", {slot.id: slot for slot in in_order})

    @classmethod
    def shared(cls, blueprint: Blueprint) -> Self:
        """One slot per parameter, held for all tasks that use it: the default (MT-DNN style)."""
        return cls(blueprint, tuple(Slot(parameter, parameter.used_by) for parameter in blueprint.parameters))

    @classmethod
    def separate(cls, blueprint: Blueprint) -> Self:
        """One slot per parameter and task: a model per task, no transfer."""
        return cls(
            blueprint,
            tuple(Slot(p, frozenset({task})) for p in blueprint.parameters for task in sorted(p.used_by)),
        )

    def of(self, parameter: str) -> tuple[Slot, ...]:
        """The slots of one parameter; raises `PlanError` when there is no such parameter."""
        found = tuple(slot for slot in self.slots if slot.parameter == parameter)
        if not found:
            raise PlanError(f"the plan has no parameter {parameter!r}")
        return found

    def slice(self, tasks: Iterable[str]) -> Slice:
        """The slots that a client of these tasks needs, and no other.

        Raises:
            PlanError: a task is unknown, or none is given.
        """
        wanted = self._known(tasks)
        return Slice(wanted, tuple(slot for slot in self.slots if slot.tasks & wanted))

    def split(self, parameter: str, groups: Sequence[Iterable[str]]) -> Self:
        """Cut the slots of one parameter so that no slot crosses a group; tasks in no group form one more.

        Each new slot starts from the value of the slot it was cut from (`origins`).

        Raises:
            PlanError: groups overlap, name an unknown task, or one that does not use the parameter.
        """
        spec = self.of(parameter)[0].spec
        parts = [self._known(group) for group in groups]
        for position, part in enumerate(parts):
            if not part <= spec.used_by:
                raise PlanError(f"tasks {sorted(part - spec.used_by)} do not use {parameter!r}")
            if any(part & other for other in parts[:position]):
                raise PlanError(f"the groups to split {parameter!r} into overlap")
        rest = spec.used_by.difference(*parts)
        cut = [
            Slot(spec, part & slot.tasks, slot.residence, slot.frozen)
            for slot in self.of(parameter)
            for part in (*parts, rest)
            if part & slot.tasks
        ]
        return self._replace(parameter, cut)

    def merge(self, parameter: str, tasks: Iterable[str] | None = None) -> Self:
        """Join all slots of one parameter that hold any of `tasks` (default: all) into one.

        The joint slot starts from the mean of the old ones weighted by their number of tasks (`origins`),
        and stays frozen only where all of them were.

        Raises:
            PlanError: the slots differ in residence, so there is no common value to start from.
        """
        slots = self.of(parameter)
        wanted = slots[0].spec.used_by if tasks is None else self._known(tasks)
        joined = [slot for slot in slots if slot.tasks & wanted]
        if not joined:
            raise PlanError(f"none of {sorted(wanted)} uses {parameter!r}")
        if len({slot.residence for slot in joined}) > 1:
            raise PlanError(f"slots of {parameter!r} that live in different places cannot be merged")
        merged = Slot(
            joined[0].spec,
            frozenset().union(*(slot.tasks for slot in joined)),
            joined[0].residence,
            all(slot.frozen for slot in joined),
        )
        return self._replace(parameter, [*(slot for slot in slots if slot not in joined), merged])

    def freeze(self, slot_ids: Iterable[str], frozen: bool = True) -> Self:
        """Stop (or resume) the training of the named slots; they keep their values."""
        chosen = self._ids(slot_ids)
        return type(self)(
            self.blueprint,
            tuple(Slot(s.spec, s.tasks, s.residence, frozen if s.id in chosen else s.frozen) for s in self.slots),
        )

    def reside(self, slot_ids: Iterable[str], residence: Residence) -> Self:
        """Move the named slots to the clients, each keeping its own, or back to the server."""
        chosen = self._ids(slot_ids)
        return type(self)(
            self.blueprint,
            tuple(Slot(s.spec, s.tasks, residence if s.id in chosen else s.residence, s.frozen) for s in self.slots),
        )

    def grow(self, blueprint: Blueprint) -> Self:
        """The plan for a blueprint with more tasks: a new task joins the slot that holds the most tasks.

        Parameters that are new (the task's head) get one slot. Raises `PlanError` when the new
        blueprint drops a task or parameter, or changes a shape.
        """
        if not set(self.blueprint.tasks) <= set(blueprint.tasks):
            raise PlanError("a plan grows by tasks, it does not lose them")
        slots: list[Slot] = []
        for spec in blueprint.parameters:
            old = self.blueprint.by_name.get(spec.name)
            if old is None:
                slots.append(Slot(spec, spec.used_by))
                continue
            if (old.shape, old.dtype) != (spec.shape, spec.dtype) or not old.used_by <= spec.used_by:
                raise PlanError(f"parameter {spec.name!r} changed from {old} to {spec}")
            new_tasks = spec.used_by - old.used_by
            host = max(self.of(spec.name), key=lambda slot: (len(slot.tasks), slot.id))
            slots += [
                Slot(spec, slot.tasks | new_tasks if slot is host else slot.tasks, slot.residence, slot.frozen)
                for slot in self.of(spec.name)
            ]
        if lost := self.blueprint.by_name.keys() - blueprint.by_name.keys():
            raise PlanError(f"the new blueprint lacks {sorted(lost)}")
        return type(self)(blueprint, tuple(slots))

    def origins(self, earlier: SharingPlan) -> dict[str, dict[str, float]]:
        """Where the value of each server-held slot comes from when this plan follows `earlier`.

        Returns:
            slot id to {earlier slot id: weight}, weights summing to 1; an empty mapping where no
            task of the slot had a server-held copy before (it starts from the blueprint's initial value).
        """
        result: dict[str, dict[str, float]] = {}
        for slot in self.slots:
            if slot.residence != "server":
                continue
            sources = [
                old
                for old in earlier.slots
                if old.parameter == slot.parameter and old.tasks & slot.tasks and old.residence == "server"
            ]
            total = sum(len(old.tasks & slot.tasks) for old in sources)
            result[slot.id] = {old.id: len(old.tasks & slot.tasks) / total for old in sources}
        return result

    @property
    def digest(self) -> str:
        """16 hex digits that are equal exactly when two plans are."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data (msgpack and JSON); `from_dict` gives the plan back."""
        return {
            "format": FORMAT,
            "family": self.blueprint.family,
            "tasks": list(self.blueprint.tasks),
            "slots": [slot.to_dict() for slot in self.slots],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            PlanError: the data is no plan, of an unknown format, or breaks an invariant.
        """
        try:
            given = PlanData.model_validate(data)
        except ValidationError as error:
            raise PlanError(f"not a plan: {error}") from error
        slots = tuple(Slot.from_dict(slot) for slot in given.slots)
        specs = {slot.parameter: slot.spec for slot in slots}
        blueprint = Blueprint(given.family, tuple(given.tasks), tuple(specs.values()))
        return cls(blueprint, slots)

    def _known(self, tasks: Iterable[str]) -> frozenset[str]:
        wanted = frozenset(tasks)
        if not wanted:
            raise PlanError("no task given")
        if unknown := wanted - set(self.blueprint.tasks):
            raise PlanError(f"unknown tasks {sorted(unknown)}; the plan has {list(self.blueprint.tasks)}")
        return wanted

    def _ids(self, slot_ids: Iterable[str]) -> frozenset[str]:
        chosen = frozenset(slot_ids)
        if unknown := chosen - self.by_id.keys():
            raise PlanError(f"the plan has no slots {sorted(unknown)}")
        return chosen

    def _replace(self, parameter: str, slots: Iterable[Slot]) -> Self:
        kept = [slot for slot in self.slots if slot.parameter != parameter]
        return type(self)(self.blueprint, (*kept, *slots))
