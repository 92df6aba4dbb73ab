"""What a caller wants done after each epoch of a round: evaluation, or an end to the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from client.slot_model import SlotModel
from common.training import TrainSettings, steps_until

#: Given the epoch's number, from 1, and the model; True ends the round.
AfterEpoch = Callable[[int, SlotModel], bool | None]


def at_epochs(
    after_epoch: AfterEpoch, model: SlotModel, settings: TrainSettings, sizes: Mapping[str, int]
) -> Callable[[int], bool]:
    """What `client.descent.descend` is to do after each step, where something is to be done after each whole epoch.

    Args:
        after_epoch: called with the model in evaluation mode, in which it must leave it.
        model: that is trained.
        settings: how, for where the epochs end.
        sizes: task to the number of its training examples.
    """
    epoch = 1

    def after_step(done: int) -> bool:
        nonlocal epoch
        ends = False
        while not ends and done >= steps_until(settings, sizes, epoch):  # a mixed step may end several tiny epochs
            with model.evaluating():
                ends = after_epoch(epoch, model) is True
            epoch += 1
        return ends

    return after_step
