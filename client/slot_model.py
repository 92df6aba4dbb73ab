"""The model of one slice: modules of the family whose parameters are the slice's slots.

Tasks whose slots agree on every parameter they have in common run through one module, a *replica*. Where the plan
is split between a client's own tasks there are several replicas, and a slot that two of them read is one and the
same `nn.Parameter` in both, so both tasks train it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from client.compilation import compiled, compiled_function
from client.dropout import DropoutStream, use_stream
from common.errors import PlanError
from common.families.base import MultiTaskModel, TrainingPass
from common.plan import Slice, Slot

if TYPE_CHECKING:
    from common.families.base import Family


@dataclass(frozen=True)
class Replica:
    """One module and the tasks that run through it."""

    tasks: tuple[str, ...]
    module: MultiTaskModel


class SlotModel:
    """Modules bound to the slots that some tasks of a slice read.

    Memory: one copy of each slot that the tasks use (nothing of the slice's other slots).

    Args:
        family: builds the modules.
        slice_: the slots.
        tasks: the tasks to bind, a part of the slice's; those of the client's own data.
        device: where the modules live.

    Raises:
        PlanError: the slice does not fit the family: a parameter unknown, missing or of another shape.
    """

    def __init__(self, family: Family, slice_: Slice, tasks: Sequence[str], device: torch.device) -> None:
        check_slice(family, slice_, tasks)
        self.tasks = tuple(tasks)
        self.device = device
        self.dropout = DropoutStream()
        self.slots = {slot.id: slot for slot in slice_.slots if slot.tasks & set(tasks)}
        self._tensors: dict[str, Tensor] = {}
        self.replicas = tuple(
            self._bind(slice_, group, family.build(group).to(device)) for group in replica_groups(slice_, tasks)
        )
        self._still = [part for replica in self.replicas for part in self._still_parts(replica.module)]
        self._module_of = {task: replica.module for replica in self.replicas for task in replica.tasks}
        self._trains = {task: frozenset(s.id for s in self.slots.values() if task in s.trained_by) for task in tasks}
        self._active: frozenset[str] | None = None
        self._open: frozenset[str] = frozenset(self.slots)
        self._compiled: dict[int, nn.Module] = {}
        self._compiled_passes: dict[int, Callable[[Mapping[str, slice], Mapping[str, Tensor]], TrainingPass]] = {}

    def load(self, values: Mapping[str, Tensor], *, training: bool, in_place: Container[str] = ()) -> None:
        """Give every slot its value and put the modules into training or evaluation mode.

        The values themselves are never written to. For training, slots that may change get a copy on the device;
        everything else on the CPU is read from `values` in place.

        Args:
            values: slot id to value; may hold more than this model's slots.
            training: which mode.
            in_place: slots that are read in place although they may change; who asks for it gives their
                parameters other memory before the first step.

        Raises:
            PlanError: a slot has no value, or one of another shape or dtype.
        """
        for slot_id, slot in self.slots.items():
            value = values.get(slot_id)
            if value is None:
                raise PlanError(f"there is no value for slot {slot_id!r}")
            if tuple(value.shape) != slot.shape or value.dtype != getattr(torch, slot.dtype):
                raise PlanError(
                    f"slot {slot_id!r}: expected {slot.dtype} of shape {slot.shape}, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
            tensor = self._tensors[slot_id]
            # Buffers are written to by the forward pass (running means) even where no task trains them.
            changes = training and (bool(slot.trained_by & set(self.tasks)) or slot.spec.kind == "buffer")
            tensor.data = value.detach().to(self.device, copy=changes and slot_id not in in_place)
            tensor.grad = None
        self.open(self.slots)
        self._set_mode(training=training)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside, then training mode again; for a model that is loaded for training."""
        self._set_mode(training=False)
        try:
            yield
        finally:
            self._set_mode(training=True)

    def _set_mode(self, *, training: bool) -> None:
        for replica in self.replicas:
            replica.module.train(training)
        # A frozen batch normalisation would else train on what it is not evaluated with: statistics of the batch.
        for part in self._still:
            part.training = False

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Outputs of one task: logits ``(B, C)`` or scores ``(B,)``; the batch is on the model's device."""
        module: nn.Module = self._module_of[task]
        outputs: Tensor = self._compiled.get(id(module), module)(task, batch)
        return outputs

    def forward_parts(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of rows of several tasks, as `MultiTaskModel.forward_parts`; each two of them `one_pass_gives`."""
        return self._module_of[next(iter(parts))].forward_parts(parts, batch)

    def one_pass_gives(self, one: str, other: str) -> bool:
        """Whether `forward_parts` can compute both tasks; where a compiled pass does better it should not."""
        return self._module_of[one] is self._module_of[other] and id(self._module_of[one]) not in self._compiled

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """What `MultiTaskModel.training_pass` computes of the rows of tasks of one `together`.

        Args:
            parts: task to its rows of the batch.
            batch: on the model's device.
        """
        module = self._module_of[next(iter(parts))]
        if id(module) not in self._compiled:
            return module.training_pass(parts, batch)
        if len(parts) == 1 and type(module).training_pass is MultiTaskModel.training_pass:
            ((task, rows),) = parts.items()  # evaluation has this compiled as well
            return TrainingPass({task: self.forward(task, {name: tensor[rows] for name, tensor in batch.items()})})
        if id(module) not in self._compiled_passes:
            self._compiled_passes[id(module)] = compiled_function(module.training_pass, self.device)
        return self._compiled_passes[id(module)](parts, batch)

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:
        """As `MultiTaskModel.gates`."""
        return self._module_of[task].gates(task)

    def together(self, tasks: Iterable[str]) -> list[tuple[str, ...]]:
        """Group tasks that one pass can train: of one replica, and none reads a slot that only another may train."""
        groups: list[tuple[str, ...]] = []
        for task in tasks:
            for place, group in enumerate(groups):
                if all(self._agree(task, member) for member in group):
                    groups[place] = (*group, task)
                    break
            else:
                groups.append((task,))
        return groups

    def _agree(self, one: str, other: str) -> bool:
        if self._module_of[one] is not self._module_of[other]:
            return False
        # Buffers have no gradient that could reach them from another's loss.
        return self._module_of[one].cuts_gradients or not any(
            (one in slot.trained_by) != (other in slot.trained_by)
            for slot in self.parameter_slots.values()
            if {one, other} <= slot.tasks
        )

    def open(self, slot_ids: Iterable[str]) -> None:
        """Let tasks train no other slots than these from now on, until the model is loaded again."""
        self._open, self._active = frozenset(slot_ids), None

    def is_open(self, slot_id: str) -> bool:
        """Whether tasks that may train a slot can do so now."""
        return slot_id in self._open

    def compile(self) -> None:
        """Compile the passes of every replica, once, each when it is first needed.

        Raises:
            ConfigError: this machine lacks what compiling needs.
        """
        for replica in self.replicas:
            if id(replica.module) not in self._compiled:
                self._compiled[id(replica.module)] = compiled(replica.module, self.device)

    def clear_gradients(self) -> None:
        """Let go of all gradients."""
        for tensor in self._tensors.values():
            tensor.grad = None

    def train_only(self, *tasks: str) -> None:
        """Let gradients flow to the open slots that one of these tasks may train, and to no others."""
        trains = self._open.intersection(frozenset[str]().union(*(self._trains[task] for task in tasks)))
        if trains == self._active:
            return
        for slot_id in self.parameter_slots:
            self._tensors[slot_id].requires_grad_(slot_id in trains)
        self._active = trains

    def take_gradients(self) -> dict[str, Tensor]:
        """The gradients that there are, by slot id, handed over: the parameters have none afterwards."""
        gradients = {}
        for slot_id in self.parameter_slots:
            tensor = self._tensors[slot_id]
            if tensor.grad is not None:
                gradients[slot_id], tensor.grad = tensor.grad, None
        return gradients

    def put_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Give parameters these gradients, by slot id; others keep theirs."""
        for slot_id, gradient in gradients.items():
            self._tensors[slot_id].grad = gradient

    @property
    def parameter_slots(self) -> dict[str, Slot]:
        """The slots that are parameters rather than buffers."""
        return {slot_id: slot for slot_id, slot in self.slots.items() if slot.spec.kind == "parameter"}

    def trainers(self) -> list[str]:
        """The tasks that may train a parameter; one that has nothing but buffers left has no step to take."""
        return [task for task in self.tasks if not self._trains[task].isdisjoint(self.parameter_slots)]

    def trained_by(self, tasks: frozenset[str]) -> dict[str, Slot]:
        """The slots, buffers included, that one of these tasks may train."""
        return {slot_id: slot for slot_id, slot in self.slots.items() if slot.trained_by & tasks}

    def parameter(self, slot_id: str) -> nn.Parameter:
        """The parameter that holds a slot."""
        tensor = self._tensors[slot_id]
        if not isinstance(tensor, nn.Parameter):
            raise PlanError(f"slot {slot_id!r} is a buffer")
        return tensor

    def value(self, slot_id: str) -> Tensor:
        """A slot's value now, on the model's device; a view, not a copy."""
        return self._tensors[slot_id].detach()

    def take(self, slot_id: str) -> Tensor:
        """A slot's value on the CPU in float32, handed over: the model must be loaded again before it is used."""
        tensor = self._tensors[slot_id]
        tensor.grad = None
        return tensor.detach().to("cpu", torch.float32)

    def _still_parts(self, module: nn.Module) -> Iterator[nn.Module]:
        """The parts with buffers of their own of whose slots no task here trains any: they run as in evaluation."""
        slot_of = {id(tensor): self.slots[slot_id] for slot_id, tensor in self._tensors.items()}
        for part in module.modules():
            tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            held = [slot_of[id(tensor)] for tensor in tensors if id(tensor) in slot_of]
            moves = any(slot.spec.kind == "buffer" for slot in held)
            if moves and not any(slot.trained_by & set(self.tasks) for slot in held):
                yield part

    def _bind(self, slice_: Slice, group: tuple[str, ...], module: MultiTaskModel) -> Replica:
        """Put the tensors of the group's slots into a fresh module, under every name it knows them by."""
        names = _names_by_tensor(module)
        wanted: dict[str, Slot] = {}
        for task in group:
            wanted |= slice_.for_task(task)
        for parameter, slot in wanted.items():
            places = names.pop(parameter, None)
            if places is None:
                raise PlanError(f"the model built for {list(group)} has no tensor {parameter!r}")
            own = _tensor_at(module, places[0])
            if tuple(own.shape) != slot.shape:
                raise PlanError(f"{parameter!r}: the model has shape {tuple(own.shape)}, the slice {slot.shape}")
            if isinstance(own, nn.Parameter) != (slot.spec.kind == "parameter"):
                raise PlanError(f"{parameter!r} is a {slot.spec.kind} in the slice and something else in the model")
            shared = self._tensors.setdefault(slot.id, own)
            for place in places:
                owner, _, leaf = place.rpartition(".")
                setattr(module.get_submodule(owner), leaf, shared)
        if left := [name for name in names if isinstance(_tensor_at(module, name), nn.Parameter)]:
            raise PlanError(f"the slice has no slot for parameters {left} of the model built for {list(group)}")
        use_stream(module, self.dropout)
        return Replica(group, module)


def check_slice(family: Family, slice_: Slice, tasks: Sequence[str]) -> None:
    """Refuse a slice that does not fit the family, before any memory is spent on it.

    Raises:
        PlanError: names the task or parameter.
    """
    blueprint = family.blueprint()
    if strangers := set(tasks) - slice_.tasks:
        raise PlanError(f"tasks {sorted(strangers)} are not in the slice of {sorted(slice_.tasks)}")
    for slot in slice_.slots:
        if not slot.tasks & set(tasks):
            continue  # another task's, in the slice of a client that takes the whole model
        spec = blueprint.by_name.get(slot.parameter)
        if spec is None:
            raise PlanError(f"slot {slot.id!r}: the family {family.name!r} has no parameter {slot.parameter!r}")
        if (spec.shape, spec.dtype, spec.kind) != (slot.shape, slot.dtype, slot.spec.kind):
            raise PlanError(
                f"slot {slot.id!r}: {slot.spec.kind} {slot.dtype}{list(slot.shape)} in the slice, "
                f"{spec.kind} {spec.dtype}{list(spec.shape)} in the family {family.name!r}"
            )
    for task in tasks:
        held = slice_.for_task(task)
        if missing := [spec.name for spec in blueprint.used_by(task) if spec.name not in held]:
            raise PlanError(f"the slice lacks {missing} for task {task!r}")


def replica_groups(slice_: Slice, tasks: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Group tasks that can run through one module: no two of them read different slots of one parameter.

    Greedy in the order given, since agreement is not transitive (two tasks may differ on a parameter that a third
    does not use).
    """
    groups: list[list[str]] = []
    reads = {task: {name: slot.id for name, slot in slice_.for_task(task).items()} for task in tasks}

    def agree(one: str, other: str) -> bool:
        return all(reads[other].get(name, slot_id) == slot_id for name, slot_id in reads[one].items())

    for task in tasks:
        home = next((group for group in groups if all(agree(task, member) for member in group)), None)
        if home is None:
            groups.append([task])
        else:
            home.append(task)
    return tuple(tuple(group) for group in groups)


def _names_by_tensor(module: nn.Module) -> dict[str, list[str]]:
    """First name of every tensor to all its names: a tied tensor must be replaced in each place."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), []).append(name)
    return {places[0]: places for places in names.values()}


def _tensor_at(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor
