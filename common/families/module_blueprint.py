"""From a torch module to the tensors that are federated, and to a blueprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from common.blueprint import Blueprint, ParameterSpec

HEADS = "heads."


def federated_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then floating-point buffers, each tensor once.

    A tied tensor comes under the first of its names. Integer buffers (position ids) are constants
    that both ends build alike, and non-persistent ones are no part of a model's state.
    """
    yield from module.named_parameters()
    seen: set[int] = set()
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(prefix, recurse=False):
            short = name.removeprefix(f"{prefix}.") if prefix else name
            constant = not buffer.is_floating_point() or short in part._non_persistent_buffers_set
            if not constant and id(buffer) not in seen:
                seen.add(id(buffer))
                yield name, buffer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs.

    Attributes:
        used_by: the tasks whose forward pass reads it.
        trained_by: the tasks whose loss may change it.
        group: see `common.blueprint.ParameterSpec`.
    """

    used_by: frozenset[str]
    trained_by: frozenset[str]
    group: str


def placed_blueprint(
    module: nn.Module, family: str, tasks: tuple[str, ...], place_of: Callable[[str], Place]
) -> Blueprint:
    """The blueprint of a module, given where each of its tensors belongs.

    Args:
        module: holds the tensors of all `tasks`; they may be on the meta device.
        family: the family's name.
        tasks: the tasks to speak of, in configuration order; what none of them uses is left out.
        place_of: tensor name to its place; may name other tasks, too.
    """
    known = frozenset(tasks)
    parameters = set(dict(module.named_parameters()))
    specs = []
    for name, tensor in federated_tensors(module):
        place = place_of(name)
        if not place.used_by & known:
            continue
        specs.append(
            ParameterSpec(
                name=name,
                shape=tuple(tensor.shape),
                dtype="float32",
                used_by=place.used_by & known,
                trained_by=place.trained_by & known,
                group=place.group,
                kind="parameter" if name in parameters else "buffer",
            )
        )
    return Blueprint(family, tasks, tuple(specs))


def blueprint_of(
    module: nn.Module,
    family: str,
    tasks: tuple[str, ...],
    group_of: Callable[[str], str],
    is_trained: Callable[[str], bool] = lambda _: True,
    own: tuple[str, ...] = (HEADS,),
) -> Blueprint:
    """The blueprint of a module whose tensors are used by all tasks, but ``heads.<task>.*`` by that task only.

    Args:
        module: holds the heads of all `tasks`; its tensors may be on the meta device.
        family: the family's name.
        tasks: every task, in configuration order.
        group_of: tensor name to group.
        is_trained: tensor name to whether its users train it; a tensor that is not is frozen.
        own: what stands before the task's name in the names of tensors that it alone uses.
    """
    everyone = frozenset(tasks)

    def place_of(name: str) -> Place:
        before = next((prefix for prefix in own if name.startswith(prefix)), None)
        users = everyone if before is None else frozenset({name.removeprefix(before).split(".")[0]})
        return Place(users, users if is_trained(name) else frozenset(), group_of(name))

    return placed_blueprint(module, family, tasks, place_of)
