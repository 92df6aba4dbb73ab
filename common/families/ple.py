"""The `ple` family: levels of shared experts and of experts of each task's own (Tang et al., RecSys 2020).

At level l, shared experts read the shared stream and a task's own experts read the task's stream; both are the inputs
at first. A task's gate mixes its own experts and the shared ones into its stream for the next level, and after the last
level into what its tower reads. The shared gate mixes all experts, those of every task, into the shared stream; there
is none at the last level.

So as in the paper, below the last level a task reads the experts of the other tasks through the shared stream, and its
loss trains them: they are everybody's, as the shared ones are. Only the last level keeps tasks apart.

Parameters are named ``levels.<l>.shared.<n>.layers.<m>.*``, ``levels.<l>.own.<task>.<n>.layers.<m>.*``,
``levels.<l>.gate.<task>.*``, ``levels.<l>.shared_gate.*`` and ``heads.<task>.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.families.base import GateUse, TrainingPass
from common.families.expert_config import MOST_EXPERTS, GateConfig, LevelConfig, PLEConfig
from common.families.experts import ExpertStack, mixed, read
from common.families.gates import Gate, Routing, mean_penalty
from common.families.module_blueprint import Place
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "ple"


@dataclass(frozen=True)
class Streams:
    """What one level hands to the next, for the same B rows; H is its experts' last width.

    Attributes:
        shared: (B, H), what shared experts and the shared gate read; after the last level it is no longer used.
        of_task: task to (B, H), what its own experts and its gate read.
    """

    shared: Tensor
    of_task: Mapping[str, Tensor]


class Level(nn.Module):
    """Experts and gates of one level.

    Args:
        input_size: width of the streams it reads.
        level: its experts.
        gate: how its gates weigh them.
        experts_of: the tasks whose own experts are held.
        gates_of: the tasks whose gates are held.
        last: whether it is the last level, without a shared gate.
    """

    def __init__(
        self,
        input_size: int,
        level: LevelConfig,
        gate: GateConfig,
        *,
        experts_of: Sequence[str],
        gates_of: Sequence[str],
        last: bool,
    ) -> None:
        super().__init__()
        shared, own = level.shared, level.own
        held = experts_of if own.number else ()
        self.shared = ExpertStack(shared.number, input_size, shared.hidden)
        self.own = nn.ModuleDict({task: ExpertStack(own.number, input_size, own.hidden) for task in held})
        self.gate = nn.ModuleDict({task: Gate(input_size, own.number + shared.number, gate) for task in gates_of})
        every = len(held) * own.number + shared.number
        self.shared_gate = None if last else Gate(input_size, every, gate)

    def forward(
        self, streams: Streams, tasks: Sequence[str], dropout: nn.Module
    ) -> tuple[Streams, dict[str, Routing], Routing | None]:
        """The next streams, what the tasks' gates decided, and what the shared gate did.

        Args:
            streams: those of `tasks` and of all tasks whose own experts are read here.
            tasks: those whose next stream is wanted.
            dropout: applied after every layer of the experts.
        """
        stacks: dict[str | None, ExpertStack] = {
            None: self.shared,
            **{task: cast("ExpertStack", self.own[task]) for task in self.own if task in streams.of_task},
        }
        gates: dict[str | None, Gate] = {task: cast("Gate", self.gate[task]) for task in tasks}
        if self.shared_gate is not None:
            gates[None] = self.shared_gate
        outputs, products = self._read(streams, stacks, gates, dropout)
        routing = {key: gate.route(products[key]) for key, gate in gates.items()}
        of_all = routing.pop(None, None)
        of_task = {
            task: mixed(of_gate.weights, [*([outputs[task]] if task in outputs else []), outputs[None]])
            for task, of_gate in routing.items()
            if task is not None
        }
        shared = (
            streams.shared
            if of_all is None
            else mixed(of_all.weights, [*(outputs[task] for task in self.own), outputs[None]])
        )
        return Streams(shared, of_task), {task: found for task, found in routing.items() if task is not None}, of_all

    @staticmethod
    def _read(
        streams: Streams,
        stacks: Mapping[str | None, ExpertStack],
        gates: Mapping[str | None, Gate],
        dropout: nn.Module,
    ) -> tuple[dict[str | None, Tensor], dict[str | None, Tensor]]:
        """Outputs of the experts and products of the gates, by task, or None for the shared ones.

        What reads the same tensor, all of the first level, is computed in one product.
        """
        inputs: dict[str | None, Tensor] = {None: streams.shared}
        inputs.update(streams.of_task)
        readers: dict[int, list[str | None]] = {}
        for key, values in inputs.items():
            readers.setdefault(id(values), []).append(key)
        outputs: dict[str | None, Tensor] = {}
        products: dict[str | None, Tensor] = {}
        for keys in readers.values():
            with_experts = [key for key in keys if key in stacks]
            with_gates = [key for key in keys if key in gates]
            found = read(inputs[keys[0]], [stacks[k] for k in with_experts], [gates[k] for k in with_gates], dropout)
            outputs |= zip(with_experts, found[0], strict=True)
            products |= zip(with_gates, found[1], strict=True)
        return outputs, products


class PLEModel(TabularModel[PLEConfig]):
    """``y_k = h_k(sum_i g^k(x)_i f_i(x))`` over own and shared experts f_i, once per level: streams (B, F) to (B, H),
    towers to (B, C) or (B,)."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.levels = nn.ModuleList()
        width = config.input_width
        for place, level in enumerate(config.levels):
            self.levels.append(
                Level(
                    width,
                    level,
                    config.gate,
                    experts_of=self._streams(place, self.tasks),
                    gates_of=self._gated(place, self.tasks),
                    last=place == len(config.levels) - 1,
                )
            )
            width = level.shared.hidden[-1]
        self._check_shared_gates()
        self.dropout = nn.Dropout(config.dropout)
        self.heads = self.towers(width)

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """Once for each set of rows: tasks that have the same share everything but gates and towers."""
        by_rows: dict[tuple[int | None, int | None, int | None], list[str]] = {}
        for task, rows in parts.items():
            by_rows.setdefault((rows.start, rows.stop, rows.step), []).append(task)
        features = [batch["features"][parts[tasks[0]]] for tasks in by_rows.values()]
        found = [self._pass(tasks, rows) for tasks, rows in zip(by_rows.values(), features, strict=True)]
        return TrainingPass(
            {task: output for one in found for task, output in one.outputs.items()},
            mean_penalty(
                (one.penalty, len(one.outputs) * len(rows)) for one, rows in zip(found, features, strict=True)
            ),
            {task: gates for one in found for task, gates in one.gates.items()},
        )

    def _pass(self, tasks: Sequence[str], features: Tensor) -> TrainingPass:
        """All levels for rows that these tasks have in common."""
        streams = Streams(features, dict.fromkeys(self._streams(0, tasks), features))
        asked: dict[str, Tensor | None] = {}
        uses: dict[str, dict[str, GateUse]] = {task: {} for task in tasks}
        for place, level in enumerate(self.levels):
            streams, of_tasks, of_all = level(streams, self._gated(place, tasks), self.dropout)
            found = {f"{place}.own.{task}": routing for task, routing in of_tasks.items()}
            if of_all is not None:
                found[f"{place}.shared"] = of_all
            asked |= {name: routing.penalty for name, routing in found.items()}
            used = {name: routing.use() for name, routing in found.items()}
            for task in tasks:
                uses[task] |= {name: used[name] for name in self.gates(task) if name in used}
        outputs = {task: self.heads[task](streams.of_task[task]) for task in tasks}
        # Every task pays for the gates that its rows pass.
        penalties = [
            penalty * len(self._passing(name, tasks)) for name, penalty in asked.items() if penalty is not None
        ]
        return TrainingPass(outputs, torch.stack(penalties).sum() / len(tasks) if penalties else None, uses)

    def _check_shared_gates(self) -> None:
        for place, level in enumerate(self.config.levels[:-1]):
            experts = level.shared.number + level.own.number * len(self.all_tasks)
            if experts > MOST_EXPERTS:
                raise ConfigError(
                    f"model.levels.{place}: its shared gate would weigh {experts} experts, {level.shared.number} "
                    f"shared and {level.own.number} of each of {len(self.all_tasks)} tasks; allowed are {MOST_EXPERTS}"
                )

    def _passing(self, gate: str, tasks: Sequence[str]) -> list[str]:
        """Those of the tasks whose rows pass a gate."""
        return [task for task in tasks if gate in self.gates(task)]

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:
        """The gates that the task's rows pass, ``<l>.own.<task>`` and ``<l>.shared``, and in models of three levels or
        more those of other tasks, whose streams the shared gate reads above."""
        found: dict[str, tuple[str, ...]] = {}
        for place, level in enumerate(self.config.levels):
            shared = [f"expert.{place}.shared.{n}" for n in range(level.shared.number)]
            own = {t: [f"expert.{place}.own.{t}.{n}" for n in range(level.own.number)] for t in self.all_tasks}
            for gated in self._gated(place, [task]):
                found[f"{place}.own.{gated}"] = (*own[gated], *shared)
            if place < len(self.config.levels) - 1:
                found[f"{place}.shared"] = (*(group for groups in own.values() for group in groups), *shared)
        return found

    def _streams(self, place: int, tasks: Sequence[str]) -> Sequence[str]:
        """The tasks whose streams are read at a level, for the outputs of `tasks`."""
        return self.all_tasks if _mixed_above(self.config, place) else tuple(tasks)

    def _gated(self, place: int, tasks: Sequence[str]) -> Sequence[str]:
        """The tasks whose gates are passed at a level, for the outputs of `tasks`."""
        return self.all_tasks if _mixed_above(self.config, place + 1) else tuple(tasks)

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """Shared experts and gates are everybody's; what is a task's own is so only where no shared gate reads it."""
        if found := head_place(name):
            return found
        config = cast("PLEConfig", description.config)
        everyone = frozenset(description.towers)
        _, level, kind, which, *rest = name.split(".")
        if kind == "shared":
            return Place(everyone, everyone, f"expert.{level}.shared.{which}")
        if kind == "shared_gate":
            return Place(everyone, everyone, "gate")
        read_from = int(level) + (1 if kind == "gate" else 0)
        users = everyone if _mixed_above(config, read_from) else frozenset({which})
        return Place(users, users, f"expert.{level}.own.{which}.{rest[0]}" if kind == "own" else "gate")


def _mixed_above(config: PLEConfig, place: int) -> bool:
    """Whether a task's stream into this level reaches a shared gate, here or above: through own experts it reads."""
    return any(level.own.number > 0 for level in config.levels[place:-1])
