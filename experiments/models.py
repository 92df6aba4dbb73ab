"""The models that experiments compare, by name, each as large as the MMoE paper's.

The reference is that paper's MMoE (Ma et al., KDD 2018): 8 experts of 16 units, towers of 8. The widths of every other
model are chosen so that it has as nearly as can be the same number of parameters for the inputs at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from common.config_file import validate
from common.errors import ConfigError
from common.families.config import ModelConfig, TransformerConfig
from common.strict_model import StrictModel

if TYPE_CHECKING:
    from common.families.config import AnyTabularConfig
    from common.tasks import TaskSpec

#: The name that a model has in papers and other libraries, as given on the command line, to ours.
ALIASES: Final[Mapping[str, str]] = {
    "SingleTaskModel": "single_task",
    "SharedBottomModel": "shared_bottom",
    "MixtureOfExperts": "omoe",
    "MultiGateMixtureOfExperts": "mmoe",
    "ProgressiveLayeredExtraction": "ple",
    "CrossStitch": "cross_stitch",
    "SoftSharing": "soft_sharing",
    "ProgressiveNetworks": "progressive",
    "SharedPrivateAdversarial": "adversarial",
}
REFERENCE: Final = "mmoe"
_EXPERTS: Final[Mapping[str, Any]] = {"number": 8, "hidden": [16]}
#: Model to its `model:` section, before its widths are matched; inputs and towers are added.
MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "single_task": {"family": "single_task", "column": [64]},
    "shared_bottom": {"family": "shared_bottom", "bottom": [128]},
    "omoe": {"family": "omoe", "experts": _EXPERTS},
    "mmoe": {"family": "mmoe", "experts": _EXPERTS},
    "ple": {
        "family": "ple",
        "levels": [{"shared": {"number": 4, "hidden": [16]}, "own": {"number": 2, "hidden": [16]}}],
    },
    "soft_sharing": {"family": "soft_sharing", "column": [64]},
    "soft_sharing_trace_norm": {"family": "soft_sharing", "column": [64], "coupling": {"kind": "trace_norm"}},
    "cross_stitch": {"family": "cross_stitch", "column": [64]},
    "progressive": {"family": "progressive", "column": [64]},
    "adversarial": {"family": "adversarial", "bottom": [64], "column": [32]},
}
TOWER: Final = [8]


class _Section(StrictModel):
    """A `model:` section alone."""

    model: ModelConfig


def model_name(name: str) -> str:
    """Our name of a model.

    Raises:
        ConfigError: there is none of this name.
    """
    known = ALIASES.get(name, name)
    if known not in MODELS:
        also = ", ".join(alias for alias, ours in ALIASES.items() if ours in MODELS)
        raise ConfigError(f"--model {name}: allowed are {', '.join(MODELS)} (or {also})")
    return known


def model_section(name: str, inputs: Mapping[str, Any], tasks: Mapping[str, TaskSpec]) -> AnyTabularConfig:
    """The configuration of one of the models, sized as the reference.

    Args:
        name: one of `MODELS` or `ALIASES`.
        inputs: the keys numeric, categorical and missing of a `model:` section.
        tasks: those that the model is for.

    Raises:
        ConfigError: there is no such model, or the inputs make no sense.
    """
    from common.families.matching import count, matched

    known = model_name(name)
    config = _validated(known, inputs)
    if known == REFERENCE:
        return config
    return matched(config, tasks, count(_validated(REFERENCE, inputs), tasks))


def _validated(name: str, inputs: Mapping[str, Any]) -> AnyTabularConfig:
    section = {**MODELS[name], "tower": TOWER, **inputs}
    config = validate(_Section, {"model": section}, f"model {name}").model
    if isinstance(config, TransformerConfig):
        raise AssertionError("none of the models is a transformer")  # noqa: TRY004  # not the caller's mistake
    return config
