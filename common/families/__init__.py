"""Model families: what a model consists of, how rows become its inputs, where its first values come from.

`config` and `tabular_config` hold the `model:` section of the configuration, `base` the interface, `transformer` the
family over texts, `tabular_family` those over rows. Importing this package loads neither torch nor transformers (2.5 s
and 150 MB); the functions below do when called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, ProtocolError
from common.families.config import ModelConfig, TransformerConfig

if TYPE_CHECKING:
    from common.families.base import Family
    from common.tasks import TaskSpec

__all__ = ["build_family", "family_from_description"]


def build_family(config: ModelConfig, tasks: Mapping[str, TaskSpec], *, base_dir: Path) -> Family:
    """The family that the configuration asks for, with its encoder found; for the server.

    Args:
        config: the `model:` section.
        tasks: every configured task by name.
        base_dir: folder that relative paths in `config` are resolved against.

    Raises:
        ConfigError: the encoder can't be found, or does not fit the settings or the tasks.
    """
    if not tasks:
        raise ConfigError("tasks: a model needs at least one task")
    if isinstance(config, TransformerConfig):
        from common.families.transformer import TransformerFamily

        return TransformerFamily.from_config(config, tasks, base_dir=base_dir)
    from common.families.tabular_family import TabularFamily

    return TabularFamily.from_config(config, tasks)


def family_from_description(
    description: Mapping[str, Any], assets: Mapping[str, bytes], tasks: Mapping[str, TaskSpec]
) -> Family:
    """Rebuild a family from what the server sent (or a run directory holds); reads no disk, no network.

    Args:
        description: what `Family.describe` returned.
        assets: what `Family.assets` returned.
        tasks: the tasks this side has to do with, a subset of the server's.

    Raises:
        ProtocolError: (code ``bad_description``) it is not a description this version understands.
    """
    family = description.get("family")
    if family == "transformer":
        from common.families.transformer import TransformerFamily

        return TransformerFamily.from_description(description, assets, tasks)
    from common.families.tabular_family import MODELS, TabularFamily

    if family in MODELS:
        return TabularFamily.from_description(description, tasks)
    raise ProtocolError(
        "bad_description",
        f"model family {family!r} is unknown here; known are transformer and {', '.join(MODELS)}. "
        "Server and client must run the same version of fedmtl",
    )
