"""One tiny configuration of every family over tabular rows, for tests that hold of all of them."""

from __future__ import annotations

from typing import Any

from common.families.base import Family
from tests.common.families.tabular import tabular

_LEVEL = {"shared": {"number": 2, "hidden": [5]}, "own": {"number": 2, "hidden": [5]}}
_NONE_OWN = {**_LEVEL, "own": {"number": 0}}

#: Name of a case to the family, and to its section without the inputs. A family has several cases where its options
#: change who reads what.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "single_task": ("single_task", {"column": [6, 5]}),
    "shared_bottom": ("shared_bottom", {"bottom": [6, 5]}),
    "omoe": ("omoe", {"experts": {"number": 3, "hidden": [6, 5]}}),
    "mmoe": ("mmoe", {"experts": {"number": 3, "hidden": [6, 5]}, "gate": {"bias": True}}),
    "mmoe, sparse": ("mmoe", {"experts": {"number": 4, "hidden": [5]}, "gate": {"top_k": 2, "noise": True}}),
    "ple, one level": ("ple", {"levels": [_LEVEL]}),
    "ple, two levels": ("ple", {"levels": [{**_LEVEL, "own": {"number": 1, "hidden": [3, 5]}}, _LEVEL]}),
    "ple, three levels": ("ple", {"levels": [_LEVEL, _LEVEL, _LEVEL]}),
    "ple, own experts at the end": ("ple", {"levels": [_NONE_OWN, _NONE_OWN, _LEVEL]}),
    "cross_stitch, by channel": ("cross_stitch", {"column": [6], "per_channel": True}),
    "cross_stitch": ("cross_stitch", {"column": [6, 5]}),
    "soft_sharing": ("soft_sharing", {"column": [6, 5]}),
    "progressive": ("progressive", {"column": [6, 5], "adapter": 6}),
    "adversarial": ("adversarial", {"bottom": [6, 5], "column": [4]}),
    "soft_sharing, l2": ("soft_sharing", {"column": [6, 5]}),
    "soft_sharing, trace norm": ("soft_sharing", {"column": [6, 5], "coupling": {"kind": "trace_norm"}}),
}


def family_of(case: str) -> Family:
    """The family of a case, for the tasks of `tests.common.families.tabular`."""
    name, section = CASES[case]
    return tabular(name, **section)
