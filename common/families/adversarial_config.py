"""The `model:` section of the `adversarial` family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.families.tabular_config import FlexibleWidths, TabularConfig


class AdversarialConfig(TabularConfig):
    """Shared layers beside a column of each task's own, kept apart by two penalties (Liu, Qiu & Huang 2017, arXiv
    1704.05742); with both of them 0 a plain shared-private model."""

    family: Literal["adversarial"]

    bottom: FlexibleWidths = Field(default=[64, 32])
    """Widths of the shared layers."""

    column: FlexibleWidths = Field(default=[64, 32])
    """Widths of each task's own layers beside them; its tower reads both."""

    adversarial: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Weight of the loss of a discriminator that tells tasks by the shared features, which these work against."""

    orthogonality: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Weight of what shared and own features have in common."""
