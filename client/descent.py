"""The optimiser steps of one round, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch.nn.utils import clip_grad_norm_

from client.batches import Batch
from client.correction import Correction
from client.failures import TrainingCancelled
from client.objective import Objective
from client.optimizer import build_optimizer, set_learning_rate
from client.slot_model import SlotModel
from client.tally import Tally, TaskReport
from client.time_budget import TimeBudget
from client.vocabulary import CompactVocabulary
from common.failpoints import failpoint
from common.training import Position, TrainSettings, learning_rate_factor


def descend(
    model: SlotModel,
    objective: Objective,
    batches: Iterator[Batch],
    total: int,
    settings: TrainSettings,
    position: Position,
    tally: Tally,
    cancelled: threading.Event,
    corrections: Sequence[Correction] = (),
    openings: Mapping[int, frozenset[str]] | None = None,
    budget: TimeBudget | None = None,
    vocabulary: CompactVocabulary | None = None,
    after_step: Callable[[int], bool] | None = None,
) -> dict[str, TaskReport]:
    """Train the model in place; which slots were open to the end the model knows.

    Args:
        model: loaded for training.
        objective: gives each batch's gradient.
        batches: the examples of each step, `total` of them.
        total: steps that are planned for the round; the learning rate follows from them.
        settings: how to train.
        position: where in the run the round stands.
        tally: counts and reports.
        cancelled: checked before every step.
        corrections: change each step's gradients before they are clipped, in this order.
        openings: step to the slots that are open from it on, as `client.unfreezing.openings` gives them.
        budget: ends the round after the step in which it is used up.
        vocabulary: the embedding rows that take part, where not all do.
        after_step: called after each step with the number of steps done, at least 1; True ends the round.

    Raises:
        TrainingCancelled: `cancelled` was set.
        TrainingDiverged: a loss is not finite.
    """
    slots = {i: slot for i, slot in model.trained_by(frozenset(model.tasks)).items() if i in model.parameter_slots}
    optimizer = build_optimizer(model, slots, settings)
    parameters = [model.parameter(slot_id) for slot_id in slots]
    if vocabulary is not None:
        vocabulary.begin(optimizer)

    tally.report()
    for step, batch in enumerate(batches):
        if cancelled.is_set():
            raise TrainingCancelled(f"training of round {position.round} was cancelled after {step} steps")
        if step == total // 2:
            failpoint("client.training")
        if openings and step in openings:
            model.open(openings[step])
        began = time.perf_counter()
        set_learning_rate(optimizer, settings.learning_rate * learning_rate_factor(settings, position, step, total))
        for parameter in parameters:
            parameter.grad = None
        if vocabulary is not None:
            vocabulary.admit(batch)
        losses = objective.backward(batch)
        for correction in corrections:
            correction.apply(optimizer)
        if settings.max_grad_norm is not None:
            clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        tally.add(losses, time.perf_counter() - began)
        tally.report_sometimes()
        ends = after_step is not None and after_step(step + 1)
        if (ends or (budget is not None and budget.used_up())) and step + 1 < total:
            tally.report()
            break
    return tally.reports(objective.gates)
