"""What a model does on held-out rows: its tasks' metrics, and what its gates do with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from client.device import to_device
from client.evaluate import evaluate_task
from common.messages import GateReport, TaskContribution
from experiments.results import row_of
from experiments.specialisation import specialise
from server.gate_records import gate_record

if TYPE_CHECKING:
    from client.slot_model import SlotModel
    from common.families.base import EncodedSplit, Family
    from common.tasks import TaskSpec
    from common.training import TrainSettings
    from experiments.rows import Split

#: Gates are watched on so many rows: a mean over them is known to about one part in a hundred.
GATE_ROWS: Final = 8192


def measured(
    model: SlotModel, tasks: Mapping[str, TaskSpec], rows: Mapping[str, EncodedSplit], settings: TrainSettings
) -> dict[str, Any]:
    """One entry of a result's history without its number: ``tasks``, and of models with gates what `gate_entries` says.

    Args:
        model: in evaluation mode.
        tasks: by name, at least those of the model.
        rows: task to held-out rows.
        settings: batch size and precision of the evaluation.

    Raises:
        TrainingDiverged: outputs are not finite.
    """
    results = {name: row_of(evaluate_task(model, tasks[name], rows[name], settings)) for name in model.tasks}
    seen = {name: _contribution(model, name, rows[name], settings) for name in model.tasks}
    return {"tasks": results, **gate_entries(gate_record({"here": seen}))}


def tested(
    model: SlotModel, family: Family, rows: Split, settings: TrainSettings
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """A trained model on the test rows: task to metrics, and which inputs its gates send where.

    Args:
        model: in evaluation mode.
        family: what it is.
        rows: test rows of its tasks.
        settings: batch size and precision of the evaluation.

    Returns:
        the metrics, and task to what `experiments.specialisation.specialise` says of it, without tasks that have no
        gates.
    """
    results = measured(model, family.tasks, rows.encoded, settings)["tasks"]
    special = {
        task: gates
        for replica in model.replicas
        for task in replica.tasks
        if (gates := specialise(replica.module, family, task, rows.shown[task]))
    }
    return results, special


def gate_entries(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """``gates`` and ``gate_distances`` as a result's history has them, of a record of `server.gate_records`."""
    return {} if record is None else {"gates": record["tasks"], "gate_distances": record["distances"]}


def _contribution(model: SlotModel, task: str, rows: EncodedSplit, settings: TrainSettings) -> TaskContribution:
    """What the task's gates do with the first `GATE_ROWS` rows, as a client reports it of its training."""
    [module] = [replica.module for replica in model.replicas if task in replica.tasks]
    experts = module.gates(task)
    count = min(len(rows), GATE_ROWS) if experts else 0
    masses: dict[str, Tensor] = {}
    entropies = dict.fromkeys(experts, 0.0)
    with torch.inference_mode():
        for start in range(0, count, settings.eval_batch_size):
            indices = np.arange(start, min(count, start + settings.eval_batch_size))
            batch = to_device(rows.collate(indices), model.device)
            for gate, use in module.training_pass({task: slice(0, len(indices))}, batch).gates[task].items():
                masses[gate] = masses[gate] + use.mass if gate in masses else use.mass
                entropies[gate] += float(use.entropy)
    gates = {
        gate: GateReport(experts=experts[gate], mass=tuple(mass.tolist()), entropy=entropies[gate] / count)
        for gate, mass in masses.items()
    }
    return TaskContribution(num_examples=max(1, count), num_steps=1, loss=0.0, seconds=0.0, gates=gates)
