"""Why a piece of local work ended without a result."""

from __future__ import annotations

from common.errors import FedmtlError


class TrainingDiverged(FedmtlError):
    """A loss, an output or an update is not finite; nothing of the round is kept."""


class TrainingCancelled(FedmtlError):
    """The work was called off from outside; nothing of the round is kept."""
