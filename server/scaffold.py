"""SCAFFOLD on the server (Karimireddy et al. 2020, arXiv 1910.06378): the common control variate of each slot."""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.plan import Slot


def control_weights(
    slot: Slot, weights: Mapping[str, float], present: Mapping[str, frozenset[str]]
) -> dict[str, float]:
    """The weights of the changes of clients' control variates: ``c += |S| / N * sum_k p_k (c_k+ - c_k)``.

    ``p_k`` is the client's share of the slot's weights, those of its model update (tasks before clients), so that with
    all clients taking part ``c`` stays the mean of the ``c_k`` that the model moves by. With fewer, ``S`` of ``N``, it
    follows as in the paper, where all clients weigh alike.

    Args:
        slot: the control slot.
        weights: client id to the weight of its update in the slot, above 0; at least one.
        present: client id to tasks, of the clients that were connected when the round began. Those with a task that
            trains the slot are the ``N``, together with those that have answered.
    """
    known = {client_id for client_id, tasks in present.items() if tasks & slot.trained_by} | weights.keys()
    share = len(weights) / len(known) / math.fsum(weights.values())
    return {client_id: weight * share for client_id, weight in weights.items()}
