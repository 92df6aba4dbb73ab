"""Which slots are trained in which round: a pure function of the schedule, the round and the tasks that have stopped.

Nothing here remembers: the plan of a round is the same whichever process asks for it, and however often.

**Buffers** (running statistics of a BatchNorm) go with the parameters of their module: where all of these are frozen
the statistics are too, so that a frozen layer computes the same for ever. A buffer that `freeze` names is frozen
anyway; one whose module has no parameters is treated as a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.plan import SharingPlan, Slot
from common.selectors import EMBEDDINGS, HEAD, OF_A_TASK, is_mixture, layer_count, layer_of, select
from server.freezing_config import FreezingConfig, SlotChoice


@dataclass(frozen=True, slots=True)
class SlotGroup:
    """Some slots, of whatever plan: those of these parameters, held for no other tasks than these (None: for any)."""

    parameters: frozenset[str]
    tasks: frozenset[str] | None = None

    def holds(self, slot: Slot) -> bool:
        """Whether a slot is one of them."""
        return slot.parameter in self.parameters and (self.tasks is None or slot.tasks <= self.tasks)


@dataclass(frozen=True, slots=True)
class Stage:
    """What is open in some rounds: from one on, and where another is given no longer than to the end of that."""

    from_round: int
    open: tuple[SlotGroup, ...]
    until_round: int | None = None

    def covers(self, round_id: int) -> bool:
        """Whether it is open in a round."""
        return self.from_round <= round_id and (self.until_round is None or round_id <= self.until_round)

    def outlasts(self, other: Stage) -> bool:
        """Whether it is open when another ends."""
        return self.until_round is None or (other.until_round is not None and other.until_round <= self.until_round)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is trained when.

    Attributes:
        freeze: never trained.
        stages: in the order of rounds; what none has open is frozen. Without stages all is open.
    """

    freeze: tuple[SlotGroup, ...] = ()
    stages: tuple[Stage, ...] = ()


def plan_of_round(
    plan: SharingPlan,
    schedule: Schedule,
    round_id: int,
    stopped: frozenset[str] = frozenset(),
    *,
    shared_goes_on: bool = False,
) -> SharingPlan:
    """The plan of a round: `plan` with other frozen flags, which follow from the arguments alone.

    Args:
        plan: any plan of the run; says which slots there are. Its own frozen flags count for nothing.
        schedule: what is open when.
        round_id: the round, from 1.
        stopped: tasks that are trained no more: slots that are held for such tasks only are frozen.
        shared_goes_on: of these only the slots of a single task.
    """
    opened = [group for stage in schedule.stages if stage.covers(round_id) for group in stage.open]

    def is_closed(slot: Slot) -> bool:
        return (
            _any_holds(schedule.freeze, slot)
            or (bool(schedule.stages) and not _any_holds(opened, slot))
            or (slot.tasks <= stopped and (len(slot.tasks) == 1 or not shared_goes_on))
        )

    modules = _modules(plan)
    frozen = set()
    for slot in plan.slots:
        beside = [other for other in modules.get(_module(slot), ()) if other.tasks & slot.tasks]
        if slot.spec.kind == "buffer" and beside and not _any_holds(schedule.freeze, slot):
            closed = all(is_closed(other) for other in beside)
        else:
            closed = is_closed(slot)
        if closed:
            frozen.add(slot.id)
    return plan.freeze(frozen).freeze(plan.by_id.keys() - frozen, frozen=False)


def trained_tasks(plan: SharingPlan) -> frozenset[str]:
    """The tasks that may train some parameter under a plan; clients of no other tasks have nothing to train."""
    return frozenset[str]().union(*(slot.trained_by for slot in plan.slots if slot.spec.kind == "parameter"))


def resolve_schedule(config: FreezingConfig, plan: SharingPlan, source: str) -> Schedule:
    """The schedule that a configuration means for the model of a plan.

    Raises:
        ConfigError: a selector matches nothing, or there is a round in which it leaves nothing to train although not
            everything is named by `freeze` and later rounds would train again; names file, key, value and what is
            allowed.
    """
    key = f"{source}: freezing"
    freeze = _groups(f"{key}.freeze", config.freeze, plan)
    if config.gradual is not None:
        stages = _gradual(freeze, plan, config.gradual.rounds_per_layer)
        where = [f"{key}.gradual"] * len(stages)
    else:
        stages = tuple(
            Stage(stage.from_round, _groups(f"{key}.schedule.{i}.open", stage.open, plan), stage.until_round)
            for i, stage in enumerate(config.schedule)
        )
        where = [f"{key}.schedule.{i}" for i in range(len(stages))]
    schedule = Schedule(freeze, stages)
    if not _trained(plan_of_round(plan, Schedule(freeze), 1)):
        if config.schedule or config.gradual is not None:
            raise ConfigError(f"{key}: freeze leaves nothing for a schedule to open; leave the schedule out")
        return schedule
    _check_stages(schedule, where, plan)
    return schedule


def _check_stages(schedule: Schedule, where: Sequence[str], plan: SharingPlan) -> None:
    """Refuse a stage that opens nothing new, and one after whose end nothing is open until a later one begins.

    Args:
        schedule: of stages.
        where: the key of each.
        plan: the model's.
    """
    for number, (stage, at) in enumerate(zip(schedule.stages, where, strict=True)):
        trained = _trained(plan_of_round(plan, schedule, stage.from_round))
        others = Schedule(schedule.freeze, tuple(s for s in schedule.stages[:number] if s.outlasts(stage)))
        if trained == (_trained(plan_of_round(plan, others, stage.from_round)) if others.stages else frozenset()):
            raise ConfigError(
                f"{at}: opens nothing that can be trained from round {stage.from_round} on and was not open before; "
                "leave the stage out, or open something that freeze does not name"
            )
        if stage.until_round is None or stage.until_round + 1 >= schedule.stages[-1].from_round:
            continue  # after the last stage nothing need be open: there the run ends
        if not _trained(plan_of_round(plan, schedule, stage.until_round + 1)):
            raise ConfigError(
                f"{at}.until_round: after round {stage.until_round} no stage has anything open that can be trained, "
                "until a later one begins: begin it there, or let this one last longer"
            )


def _trained(plan: SharingPlan) -> frozenset[str]:
    """The ids of the parameters' slots that some task may train."""
    return frozenset(slot.id for slot in plan.slots if slot.spec.kind == "parameter" and slot.trained_by)


def _groups(key: str, entries: Sequence[SlotChoice], plan: SharingPlan) -> tuple[SlotGroup, ...]:
    return tuple(_group(f"{key}.{number}", entry, plan) for number, entry in enumerate(entries))


def _group(key: str, entry: SlotChoice, plan: SharingPlan) -> SlotGroup:
    tasks = None if entry.tasks is None else frozenset(entry.tasks)
    known = set(plan.blueprint.tasks)
    if tasks is not None and (unknown := tasks - known):
        raise ConfigError(f"{key}.tasks: no task {', '.join(sorted(unknown))}; this run has {', '.join(sorted(known))}")
    for text in entry.match:
        if text.startswith(OF_A_TASK) and text.partition(":")[2] not in known:
            raise ConfigError(f"{key}: {text!r}: no such task; this run has {', '.join(sorted(known))}")
    try:
        group = SlotGroup(select(entry.match, plan.blueprint.parameters), tasks)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if not any(group.holds(slot) for slot in plan.slots):
        held = sorted({"{" + ", ".join(sorted(s.tasks)) + "}" for s in plan.slots if s.parameter in group.parameters})
        raise ConfigError(
            f"{key}.tasks: {', '.join(entry.match)} has no slot for {', '.join(sorted(tasks or ()))} alone, only for "
            f"{', '.join(held)} (federation.mode: per_task gives each task slots of its own)"
        )
    return group


def _gradual(freeze: tuple[SlotGroup, ...], plan: SharingPlan, rounds_per_layer: int) -> tuple[Stage, ...]:
    """Stages from the top of the model down; levels of which nothing can be trained take no rounds."""
    parameters = plan.blueprint.parameters
    count = layer_count(parameters)

    def level(group: str) -> int:
        """0 for heads, experts and gates, 1 for the last layer and what follows it, then a layer each, then the
        embeddings; without an encoder, 1 for experts and gates."""
        layer = layer_of(group)
        if group == HEAD or (count and is_mixture(group)):
            return 0
        if group == EMBEDDINGS:
            return count + 2
        return 1 if layer is None else count - layer

    levels: dict[int, set[str]] = {}
    for spec in parameters:
        levels.setdefault(level(spec.group), set()).add(spec.name)
    can_train = {plan.by_id[slot].parameter for slot in _trained(plan_of_round(plan, Schedule(freeze), 1))}
    open_ = [SlotGroup(frozenset(names)) for _, names in sorted(levels.items()) if names & can_train]
    return tuple(Stage(1 + number * rounds_per_layer, (group,)) for number, group in enumerate(open_))


def _any_holds(groups: Iterable[SlotGroup], slot: Slot) -> bool:
    return any(group.holds(slot) for group in groups)


def _module(slot: Slot) -> str:
    return slot.parameter.rpartition(".")[0]


def _modules(plan: SharingPlan) -> Mapping[str, list[Slot]]:
    """Module path to the slots of its parameters; a tensor without a module is none's."""
    found: dict[str, list[Slot]] = {}
    for slot in plan.slots:
        if slot.spec.kind == "parameter" and _module(slot):
            found.setdefault(_module(slot), []).append(slot)
    return found
