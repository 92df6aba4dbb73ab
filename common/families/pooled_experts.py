"""The `transformer` family with experts: an encoder, experts that read its pooled vector, gates, heads on the mixture.

Mixtures of experts with one gate or a gate per task (Ma et al., KDD 2018), as `omoe` and `mmoe` are over tabular rows.
Parameters are named ``experts.<n>.layers.<m>.*`` and ``gate.*`` or ``gate.<task>.*``, beside those of the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from common.families.base import GateUse, TrainingPass
from common.families.experts import ExpertStack
from common.families.gates import Gate
from common.families.mixture import Mixture, with_a_gate_each, with_one_gate
from common.families.transformer_model import TransformerDescription, TransformerModel


class PooledExpertsModel(TransformerModel):
    """Encoder and pooling (B, L) to (B, H), experts and gates to (B, E), heads to (B, C) or (B,).

    Of pairs whose texts are read separately, each text passes gates and experts by itself, and the head compares their
    mixtures; to `TrainingPass.gates` a pair counts as one example, with the mean of its two texts.

    Args:
        encoder: as of `TransformerModel`.
        description: as well; has experts.
        heads: of the model's tasks; they read the experts' last width.
        input_size: H.
    """

    def __init__(
        self, encoder: nn.Module, description: TransformerDescription, heads: nn.ModuleDict, input_size: int
    ) -> None:
        super().__init__(encoder, description, heads)
        config = description.experts
        assert config is not None, "`assemble` sees to it"
        self.experts = ExpertStack(config.number, input_size, config.hidden)
        self.gate: Gate | nn.ModuleDict
        if config.kind == "omoe":
            self.gate = Gate(input_size, config.number, config.gate)
        else:
            self.gate = nn.ModuleDict({task: Gate(input_size, config.number, config.gate) for task in heads})
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """See `TransformerModel.forward`."""
        return self.training_pass({task: slice(None)}, batch).outputs[task]

    def forward_parts(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `MultiTaskModel.forward_parts`."""
        return dict(self.training_pass(parts, batch).outputs)

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """See `MultiTaskModel.training_pass`: encoder and experts once for the batch."""
        vectors = self._vectors(batch)
        texts = vectors.shape[1] if vectors.dim() == 3 else 1
        spans = {task: rows.indices(len(vectors)) for task, rows in parts.items()}
        of_texts = {task: slice(start * texts, stop * texts) for task, (start, stop, _) in spans.items()}
        found = self._mixture(vectors.flatten(0, -2), of_texts)
        outputs = {
            task: self._outputs(task, hidden.view(-1, *vectors.shape[1:-1], hidden.shape[-1]))
            for task, hidden in found.hidden.items()
        }
        gates = {
            task: {gate: GateUse(use.mass / texts, use.entropy / texts) for gate, use in used.items()}
            for task, used in found.gates.items()
        }
        return TrainingPass(outputs, found.penalty, gates)

    def _mixture(self, values: Tensor, parts: Mapping[str, slice]) -> Mixture:
        if isinstance(self.gate, Gate):
            return with_one_gate(values, parts, self.experts, self.gate, self.dropout)
        return with_a_gate_each(values, parts, self.experts, cast("Mapping[str, Gate]", self.gate), self.dropout)

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:
        """The one gate, ``gate``, or the task's, over all experts."""
        name = "gate" if isinstance(self.gate, Gate) else task
        return {name: tuple(f"expert.{n}" for n in range(len(self.experts)))}
