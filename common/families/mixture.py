"""Mixtures of experts for the rows of several tasks: with one gate for all, or a gate for each (Ma et al., KDD 2018).

B rows, F inputs, E experts, H units of an expert's last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from common.families.base import GateUse
from common.families.experts import ExpertStack, mixed, read
from common.families.gates import Gate, mean_penalty
from common.families.layers import rows_of


@dataclass(frozen=True)
class Mixture:
    """What experts and gates give for the rows of some tasks.

    Attributes:
        hidden: task to (B_k, H), what its head reads.
        penalty: what the gates ask for, a scalar, a mean over the rows; None: nothing.
        gates: task to gate to what it did with the task's rows.
    """

    hidden: Mapping[str, Tensor]
    penalty: Tensor | None
    gates: Mapping[str, Mapping[str, GateUse]]


def with_one_gate(
    values: Tensor, parts: Mapping[str, slice], experts: ExpertStack, gate: Gate, dropout: nn.Module
) -> Mixture:
    """``sum_i g(x)_i f_i(x)``, once for all rows; balance and capacity of the gate are those of all tasks' rows.

    Args:
        values: (B, F).
        parts: task to its rows.
        experts: E of them.
        gate: over them; its name is ``gate``.
        dropout: applied after every layer of the experts.
    """
    outputs, (products,) = read(values, [experts], [gate], dropout)
    routing = gate.route(products)
    hidden = mixed(routing.weights, outputs)
    return Mixture(
        {task: rows_of(hidden, rows) for task, rows in parts.items()},
        routing.penalty,
        {task: {"gate": routing.use(rows)} for task, rows in parts.items()},
    )


def with_a_gate_each(
    values: Tensor, parts: Mapping[str, slice], experts: ExpertStack, gates: Mapping[str, Gate], dropout: nn.Module
) -> Mixture:
    """``sum_i g^k(x)_i f_i(x)``: experts once for all rows, then each task's gate for its rows.

    Args:
        values: (B, F).
        parts: task to its rows.
        experts: E of them.
        gates: task to its gate over them, of at least the tasks of `parts`; its name is the task's.
        dropout: applied after every layer of the experts.
    """
    (outputs,), products = read(values, [experts], [gates[task] for task in parts], dropout)
    routing = {
        task: gates[task].route(rows_of(of_gate, rows))
        for (task, rows), of_gate in zip(parts.items(), products, strict=True)
    }
    return Mixture(
        {task: mixed(routing[task].weights, [rows_of(outputs, rows)]) for task, rows in parts.items()},
        mean_penalty((of_task.penalty, of_task.weights.shape[-2]) for of_task in routing.values()),
        {task: {task: of_task.use()} for task, of_task in routing.items()},
    )
