"""Changes to a step's gradients that a federated method makes, between the backward pass and the clipping."""

from __future__ import annotations

from typing import Protocol


class Correction(Protocol):
    """One method's change."""

    def apply(self) -> None:
        """Change the gradients of the parameters in place; a parameter without a gradient is not in the step."""
