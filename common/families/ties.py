"""Parameters of which every task has a copy of its own, and which a family keeps near each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: `l2`: the sum over pairs of squared distances. `trace_norm`: the sum of singular values of the matrix that has a copy
#: in each column.
TieKind = Literal["l2", "trace_norm"]


@dataclass(frozen=True)
class Tie:
    """The copies of one tensor.

    Attributes:
        parameters: their names, one per task, all of one shape.
        kind: what they are to be near in.
        step: length of the proximal step that a server takes after each round; above 0.
    """

    parameters: tuple[str, ...]
    kind: TieKind
    step: float
