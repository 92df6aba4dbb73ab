"""Model families for the synthetic tasks, in the sizes of MMoE's experiment (Ma et al., KDD 2018, section 4.1).

Eight experts of 16 units over 100 inputs and towers of 8 units; where there are no experts, about as many parameters:
113 units in a shared bottom, 56 in each task's own network. Families that the paper does not have are as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from common.errors import ConfigError
from common.families.tabular_family import MODELS, TabularFamily
from common.tasks import TaskSpec

#: The two tasks, in the order of the labels' columns.
TASKS: Final = ("first", "second")
TOWER: Final = [8]
EXPERTS: Final = {"number": 8, "hidden": [16]}

#: Family to what its `model:` section says of sizes.
SIZES: Final[Mapping[str, Mapping[str, Any]]] = {
    "single_task": {"column": [56]},
    "shared_bottom": {"bottom": [113]},
    "omoe": {"experts": EXPERTS},
    "mmoe": {"experts": EXPERTS},
    # Of its eight experts a task reads six.
    "ple": {"levels": [{"shared": {"number": 4, "hidden": [16]}, "own": {"number": 2, "hidden": [16]}}]},
    "cross_stitch": {"column": [64]},
    "soft_sharing": {"column": [64]},
    "progressive": {"column": [60]},
    "adversarial": {"bottom": [42], "column": [42]},
}


def known_families() -> tuple[str, ...]:
    """Every family that there is a size for and that is built in, in the order of comparisons."""
    return tuple(name for name in SIZES if name in MODELS)


def synthetic_family(name: str, inputs: int, sizes: Mapping[str, Any] | None = None) -> TabularFamily:
    """A family over `inputs` complete numbers ``x0, x1 ...`` with two regression tasks.

    Args:
        name: one of `known_families`.
        inputs: how many numbers a row has; all are standard normal, so they are taken as they are.
        sizes: other sizes than the paper's, keys of the family's `model:` section.

    Raises:
        ConfigError: there is no such family.
    """
    if name not in known_families():
        raise ConfigError(f"family {name!r}: not among those compared; allowed: {', '.join(known_families())}")
    section = {
        "family": name,
        "numeric": {f"x{i}": {"indicator": False} for i in range(inputs)},
        "tower": TOWER,
        **(SIZES[name] if sizes is None else sizes),
    }
    config: Any = MODELS[name][0].model_validate(section)
    tasks = {task: TaskSpec.model_validate({"name": task, "kind": "regression", "label": task}) for task in TASKS}
    return TabularFamily.from_config(config, tasks)
