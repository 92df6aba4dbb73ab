"""Published numbers on Census-Income (KDD), as data, each with where it was read.

Our own numbers are never in here: they come from result files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method's area under the ROC curve, test half of the test file.

    Attributes:
        method: as the publication names it.
        family: ours that it corresponds to; None: we have none.
        main_best: main task, of the run that is best in it.
        main_mean: main task, mean over the runs.
        marital_mean: auxiliary task, mean over the runs.
        marital_at_best: auxiliary task, in the run that is best in the main task.
    """

    method: str
    family: str | None
    main_best: float
    main_mean: float
    marital_mean: float
    marital_at_best: float


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a publication.

    Attributes:
        dataset: our name of the data set with the same task pair.
        main: our name of the main task.
        auxiliary: our name of the auxiliary task.
        source: what it was read from, in words.
        rows: in the publication's order.
    """

    dataset: str
    main: str
    auxiliary: str
    source: str
    rows: tuple[PublishedRow, ...]


MMOE_PAPER: Final = (
    "Ma, Zhao, Yi, Chen, Hong and Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate "
    "Mixture-of-Experts, KDD 2018, tables of section 6.1; means over 400 runs after a Gaussian-process tuner with "
    "thousands of trials. Read from a complete translation, whose header leaves open which of the two columns of the "
    "auxiliary task is the mean and which the value at the best run."
)
PADDLE_REC: Final = "PaddleRec's reproduction of MMoE, as its README states it"

INCOME: Final = PublishedTable(
    "census-kdd",
    "income",
    "marital",
    MMOE_PAPER,
    (
        PublishedRow("Single-Task", "single_task", 0.9398, 0.9337, 0.9933, 0.9922),
        PublishedRow("Shared-Bottom", "shared_bottom", 0.9361, 0.9295, 0.9915, 0.9921),
        PublishedRow("L2-Constrained", "soft_sharing", 0.9389, 0.9359, 0.9922, 0.9918),
        PublishedRow("Cross-Stitch", "cross_stitch", 0.9406, 0.9361, 0.9917, 0.9922),
        PublishedRow("Tensor-Factorization", None, 0.7460, 0.6765, 0.8175, 0.8412),
        PublishedRow("OMoE", "omoe", 0.9387, 0.9319, 0.9928, 0.9923),
        PublishedRow("MMoE", "mmoe", 0.9410, 0.9359, 0.9926, 0.9927),
    ),
)
EDUCATION: Final = PublishedTable(
    "census-kdd-education",
    "education",
    "marital",
    MMOE_PAPER,
    (
        PublishedRow("Single-Task", "single_task", 0.8843, 0.8792, 0.9933, 0.9922),
        PublishedRow("Shared-Bottom", "shared_bottom", 0.8836, 0.8813, 0.9927, 0.9917),
        PublishedRow("L2-Constrained", "soft_sharing", 0.8855, 0.8823, 0.9923, 0.9918),
        PublishedRow("Cross-Stitch", "cross_stitch", 0.8855, 0.8819, 0.9919, 0.9921),
        PublishedRow("Tensor-Factorization", None, 0.7367, 0.7256, 0.7453, 0.7497),
        PublishedRow("OMoE", "omoe", 0.8852, 0.8813, 0.9915, 0.9912),
        PublishedRow("MMoE", "mmoe", 0.8860, 0.8826, 0.9932, 0.9924),
    ),
)
#: A second group's numbers for MMoE alone: best and mean.
PADDLE_REC_MMOE: Final[Mapping[str, tuple[float, float]]] = {"income": (0.9494, 0.9447), "marital": (0.9942, 0.9932)}

#: By data set.
PUBLISHED: Final[Mapping[str, PublishedTable]] = {table.dataset: table for table in (INCOME, EDUCATION)}
