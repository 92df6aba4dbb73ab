"""A family on disk: what `describe()` and `assets()` gave, so that a run directory or an export needs nothing else.

::

    FOLDER/family.json          the description
    FOLDER/<asset>              each asset under its name, such as tokenizer.json
    FOLDER/task.json            exports only: the specification of the exported task
    FOLDER/model.safetensors    exports only: the task's parameters by name
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.errors import ConfigError
from common.families import family_from_description

if TYPE_CHECKING:
    from common.families.base import Family, MultiTaskModel

DESCRIPTION_FILE: Final = "family.json"
TASK_FILE: Final = "task.json"
WEIGHTS_FILE: Final = "model.safetensors"


def write_family(description: Mapping[str, Any], assets: Mapping[str, bytes], folder: Path) -> None:
    """Write a family's description and assets into `folder`, which is created.

    Raises:
        ConfigError: an asset's name is no plain file name.
    """
    for name in assets:
        if name != Path(name).name or name in {"", ".", "..", DESCRIPTION_FILE}:
            raise ConfigError(f"asset name {name!r} is no plain file name")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in assets.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in assets.items()}
    record = {"description": description, "assets": sorted(assets), "sha256": digests}
    # As they are ordered: columns are a model's inputs, and tasks its columns, in the order in which they are declared.
    (folder / DESCRIPTION_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_family(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Description and assets, as `write_family` was given them.

    Raises:
        ConfigError: the folder holds none, or it is damaged.
    """
    try:
        record = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        description: dict[str, Any] = record["description"]
        names = [str(name) for name in record["assets"]]
        if outside := [name for name in names if name != Path(name).name]:
            raise ConfigError(f"{folder / DESCRIPTION_FILE}: asset names {outside} are no plain file names")
        assets = {name: (folder / name).read_bytes() for name in names}
        digests = record.get("sha256", {})
        altered = [name for name in names if hashlib.sha256(assets[name]).hexdigest() != digests.get(name)]
        if altered:
            raise ConfigError(f"{folder}: {', '.join(altered)} does not have the SHA-256 that {DESCRIPTION_FILE} names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} holds no readable model family ({error})") from error
    return description, assets


def load_saved_model(folder: str | Path) -> tuple[Family, MultiTaskModel]:
    """An exported task: its family, to encode rows with, and the trained model in evaluation mode.

    Args:
        folder: written by ``python -m server export``.

    Raises:
        ConfigError: it is no such folder.
    """
    from safetensors.torch import load_file

    from common.tasks import TaskSpec

    folder = Path(folder)
    description, assets = read_family(folder)
    try:
        task = TaskSpec.model_validate_json((folder / TASK_FILE).read_text(encoding="utf-8"))
        values = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no exported task ({error})") from error
    family = family_from_description(description, assets, {task.name: task})
    model = family.build([task.name])
    model.load_state_dict(values, strict=True)
    return family, model.eval()
