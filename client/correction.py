"""Changes to a step's gradients that a federated method makes, between the backward pass and the clipping."""

from __future__ import annotations

from typing import Protocol

from torch.optim import Optimizer


class Correction(Protocol):
    """One method's change."""

    def apply(self, optimizer: Optimizer) -> None:
        """Change the gradients of the parameters in place; a parameter without a gradient is not in the step.

        Args:
            optimizer: about to take the step; its groups have the step's learning rates. Not to be changed.
        """
