"""Two sharing plans compared, and one described, in lines that people read.

Tensors of one group that change in the same way make one line, so that a whole layer that is split reads
``layer.1 (16 parameters): {qqp, sst2, stsb} -> {sst2} | {qqp, stsb}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.blueprint import Blueprint, ParameterSpec
from common.errors import PlanError
from common.plan import SharingPlan, Slot

#: The task sets of some slots of one parameter, ordered by their first task.
Groups = tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two plans, in one parameter.

    Attributes:
        parameter: its name.
        group: the blueprint's group of it, by which lines are joined.
        before: the task sets concerned, in the earlier plan (empty: there was none).
        after: the same in the later plan (empty: there is none any more).
        note: for a state that changed, what it is now: ``frozen``, ``trainable``, ``on the server``, ``on clients``.
    """

    parameter: str
    group: str
    before: Groups
    after: Groups
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"{_show(self.after)} now {self.note}"
        return f"{_show(self.before)} -> {_show(self.after)}"


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What changed from one plan to a later one; false when nothing did.

    Attributes:
        split: one slot became several.
        merged: several slots became one.
        regrouped: several slots became several others, in a way that is neither.
        frozen: slots that stopped, or resumed, being trained.
        moved: slots that went to the clients, or back to the server.
        grown: slots that took in tasks new to the parameter, or that are new with it.
        shrunk: slots that lost tasks which no longer use the parameter, or that went with it.
        redefined: parameters whose shape, dtype, group, kind or training tasks changed in the blueprint.
        new_tasks: tasks that only the later plan has.
        gone_tasks: tasks that only the earlier plan has.
        sizes: how many parameters each group has in either plan, for "2 of 16".
    """

    split: tuple[Change, ...] = ()
    merged: tuple[Change, ...] = ()
    regrouped: tuple[Change, ...] = ()
    frozen: tuple[Change, ...] = ()
    moved: tuple[Change, ...] = ()
    grown: tuple[Change, ...] = ()
    shrunk: tuple[Change, ...] = ()
    redefined: tuple[str, ...] = ()
    new_tasks: frozenset[str] = frozenset()
    gone_tasks: frozenset[str] = frozenset()
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change of slots, in the order of the lines."""
        return self.split + self.merged + self.regrouped + self.frozen + self.moved + self.grown + self.shrunk

    def __bool__(self) -> bool:
        return bool(self.changes or self.redefined or self.new_tasks or self.gone_tasks)

    def __str__(self) -> str:
        if not self:
            return "no change"
        lines = [f"tasks: + {task}" for task in sorted(self.new_tasks)]
        lines += [f"tasks: - {task}" for task in sorted(self.gone_tasks)]
        lines += [f"redefined: {name}" for name in self.redefined]
        sizes = dict(self.sizes)
        alike: dict[tuple[str, str], list[str]] = {}
        for change in self.changes:
            alike.setdefault((change.group, str(change)), []).append(change.parameter)
        lines += [f"{_label(group, names, sizes[group])}: {text}" for (group, text), names in alike.items()]
        return "\n".join(lines)


def diff(earlier: SharingPlan, later: SharingPlan) -> PlanDiff:
    """What `later` does otherwise than `earlier`.

    The result is false (and prints "no change") exactly when both plans have the same tasks and slots.

    Raises:
        PlanError: the plans are of different model families.
    """
    if earlier.blueprint.family != later.blueprint.family:
        raise PlanError(
            f"plans of the families {earlier.blueprint.family!r} and {later.blueprint.family!r} have nothing to compare"
        )
    found: dict[str, list[Change]] = {}
    before, after = _by_parameter(earlier), _by_parameter(later)
    redefined = []
    for name in dict.fromkeys((*after, *before)):
        old, new = before.get(name, ()), after.get(name, ())
        if old and new and _redefined(old[0].spec, new[0].spec):
            redefined.append(name)
        for kind, change in (*_partition_changes(old, new), *_membership_changes(old, new), *_state_changes(old, new)):
            found.setdefault(kind, []).append(change)
    old_tasks, new_tasks = frozenset(earlier.blueprint.tasks), frozenset(later.blueprint.tasks)
    return PlanDiff(
        **{kind: tuple(changes) for kind, changes in found.items()},
        redefined=tuple(redefined),
        new_tasks=new_tasks - old_tasks,
        gone_tasks=old_tasks - new_tasks,
        sizes=_group_sizes(earlier.blueprint, later.blueprint),
    )


def describe(plan: SharingPlan) -> str:
    """The plan as a table: a line for each group of parameters that are shared in the same way.

    Elements are those of one copy. A slot is marked ``frozen`` (nobody trains it), ``on clients``, or with the
    tasks that train it where these are not all that use it.
    """
    alike: dict[tuple[str, str], list[Slot]] = {}
    for slots in _by_parameter(plan).values():
        key = (slots[0].spec.group, " | ".join(_describe_slot(slot) for slot in slots))
        alike.setdefault(key, []).append(slots[0])
    rows = [("group", "parameters", "elements", "slots")]
    for (group, slots_text), firsts in alike.items():
        elements = sum(slot.spec.numel for slot in firsts)
        rows.append((group, f"{len(firsts):,}", f"{elements:,}", slots_text))
    held = [slot for slot in plan.slots if slot.residence == "server"]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{g:<{widths[0]}}  {p:>{widths[1]}}  {e:>{widths[2]}}  {s}" for g, p, e, s in rows]
    lines.append(f"the server holds {sum(slot.spec.numel for slot in held):,} elements in {len(held):,} slots")
    return "\n".join(lines)


def _partition_changes(old: Sequence[Slot], new: Sequence[Slot]) -> list[tuple[str, Change]]:
    """Splits, merges and other regroupings of the tasks that both plans know of one parameter."""
    common = _tasks(old) & _tasks(new)
    left = [slot.tasks & common for slot in old if slot.tasks & common]
    right = [slot.tasks & common for slot in new if slot.tasks & common]
    found = []
    while left:
        block = left[0]
        while (wider := block.union(*(part for part in (*left, *right) if part & block))) != block:
            block = wider
        before, after = _ordered(p for p in left if p & block), _ordered(p for p in right if p & block)
        left = [part for part in left if not part & block]
        if before != after:
            kind = "split" if len(before) == 1 else "merged" if len(after) == 1 else "regrouped"
            found.append((kind, _change(new[0], before, after)))
    return found


def _membership_changes(old: Sequence[Slot], new: Sequence[Slot]) -> list[tuple[str, Change]]:
    """Slots with tasks that use the parameter in one of the plans only."""
    had, has = _tasks(old), _tasks(new)
    grown = [
        ("grown", _change(slot, _ordered([slot.tasks & had]), (slot.tasks,))) for slot in new if not slot.tasks <= had
    ]
    shrunk = [
        ("shrunk", _change(slot, (slot.tasks,), _ordered([slot.tasks & has]))) for slot in old if not slot.tasks <= has
    ]
    return grown + shrunk


def _state_changes(old: Sequence[Slot], new: Sequence[Slot]) -> list[tuple[str, Change]]:
    """Slots that are frozen or reside otherwise than one they come from (new ones: than the default)."""
    found = []
    for slot in new:
        sources = [source for source in old if source.tasks & slot.tasks]
        before = _ordered(source.tasks for source in sources)
        if {slot.frozen} != ({source.frozen for source in sources} or {False}):
            note = "frozen" if slot.frozen else "trainable"
            found.append(("frozen", _change(slot, before, (slot.tasks,), note)))
        if {slot.residence} != ({source.residence for source in sources} or {"server"}):
            note = "on clients" if slot.residence == "client" else "on the server"
            found.append(("moved", _change(slot, before, (slot.tasks,), note)))
    return found


def _change(slot: Slot, before: Groups, after: Groups, note: str = "") -> Change:
    return Change(slot.parameter, slot.spec.group, before, after, note)


def _by_parameter(plan: SharingPlan) -> dict[str, tuple[Slot, ...]]:
    slots: dict[str, list[Slot]] = {}
    for slot in plan.slots:
        slots.setdefault(slot.parameter, []).append(slot)
    return {name: tuple(group) for name, group in slots.items()}


def _redefined(old: ParameterSpec, new: ParameterSpec) -> bool:
    # Tasks that are new to the parameter, or gone, are told as grown and shrunk.
    common = old.used_by & new.used_by
    return (old.shape, old.dtype, old.group, old.kind, old.trained_by & common) != (
        (new.shape, new.dtype, new.group, new.kind, new.trained_by & common)
    )


def _tasks(slots: Iterable[Slot]) -> frozenset[str]:
    return frozenset[str]().union(*(slot.tasks for slot in slots))


def _ordered(parts: Iterable[frozenset[str]]) -> Groups:
    return tuple(sorted((part for part in parts if part), key=sorted))


def _group_sizes(*blueprints: Blueprint) -> tuple[tuple[str, int], ...]:
    members: dict[str, set[str]] = {}
    for spec in (spec for blueprint in blueprints for spec in blueprint.parameters):
        members.setdefault(spec.group, set()).add(spec.name)
    return tuple((group, len(names)) for group, names in members.items())


def _label(group: str, names: Sequence[str], size: int) -> str:
    if len(names) == size:
        return f"{group} ({_count(size)})"
    if len(names) == 1:
        return f"{group} ({names[0]})"
    return f"{group} ({len(names)} of {_count(size)})"


def _count(number: int) -> str:
    return f"{number} parameter" if number == 1 else f"{number} parameters"


def _show(groups: Groups) -> str:
    return " | ".join("{" + ", ".join(sorted(group)) + "}" for group in groups) or "nothing"


def _describe_slot(slot: Slot) -> str:
    marks = []
    if not slot.trained_by:
        marks.append("frozen")
    elif slot.trained_by != slot.tasks:
        marks.append(f"trained by {', '.join(sorted(slot.trained_by))}")
    if slot.residence == "client":
        marks.append("on clients")
    return _show((slot.tasks,)) + (f" ({'; '.join(marks)})" if marks else "")
