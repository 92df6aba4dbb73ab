"""The run directory: what survives the process.

::

    runs/<run-id>/
      config.yaml                    the configuration as resolved
      family/                        what export and resume need: the family's description and assets
      run.db                         history (server.history)
      model/round-00007.safetensors  committed versions; the plan of each in its metadata
      spool/                         updates accepted and not yet committed (server.spool)
      summary.json                   written after every commit and at the end
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ConfigError, PlanError
from common.plan import SharingPlan
from server.model_state import ModelState

HASH_BLOCK: Final = 1 << 22
#: The one metadata entry of a version's file: JSON with its number and its plan.
METADATA_KEY: Final = "fedmtl"


class RunDirectory:
    """One run's folder, held by one server at a time.

    Args:
        path: the folder; made when it is missing.
        resume: go on with what is there, instead of refusing a folder that holds a run.

    Raises:
        ConfigError: the folder holds a run and `resume` is off, holds none and `resume` is on, or
            another server is using it.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path.resolve()
        held = (self.path / "run.db").exists()
        if held and not resume:
            raise ConfigError(f"{path} holds a run already: go on with --resume, or choose another run directory")
        if resume and not held:
            raise ConfigError(f"{path} holds no run to resume (there is no run.db)")
        for folder in (self.path, self.models, self.spool, self.family):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"{path} is in use by another server process") from error

    @property
    def models(self) -> Path:
        """Folder of committed versions."""
        return self.path / "model"

    @property
    def spool(self) -> Path:
        """Folder of accepted updates."""
        return self.path / "spool"

    @property
    def family(self) -> Path:
        """Folder of the model family's description and assets."""
        return self.path / "family"

    @property
    def database(self) -> Path:
        """The history's file."""
        return self.path / "run.db"

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep the configuration as resolved."""
        write_durably(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json."""
        write_durably(self.path / "summary.json", json.dumps(dict(summary), indent=1).encode() + b"\n")

    def version_path(self, version: int) -> Path:
        """Where a committed version lies."""
        return self.models / f"round-{version:05d}.safetensors"

    def commit(self, model: ModelState) -> str:
        """Write a version durably: temporary name, fsync, rename, fsync of the folder.

        Returns:
            The SHA-256 of the file in hex: equal for equal plans and values.
        """
        path = self.version_path(model.version)
        temporary = path.with_suffix(".tmp")
        # One key: safetensors writes several in an order of chance, and equal models are to have equal files.
        about = {"version": model.version, "plan": model.plan.to_dict()}
        save_file(_unshared(model.values), temporary, metadata={METADATA_KEY: json.dumps(about, sort_keys=True)})
        digest = sha256_of(temporary)
        _sync_file(temporary)
        temporary.rename(path)
        _sync_folder(self.models)
        return digest

    def prune(self, keep: int) -> None:
        """Remove committed versions but the first and the newest `keep`; after the newest is in the history."""
        for old in self.versions()[1:-keep]:
            self.version_path(old).unlink()

    def versions(self) -> list[int]:
        """The committed versions on disk, ascending."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self.models.glob("round-*.safetensors"))

    def load(self, version: int) -> ModelState:
        """Read a committed version back.

        Raises:
            ConfigError: there is no such version, or the file is not one.
        """
        return load_version(self.version_path(version))


def load_version(path: Path) -> ModelState:
    """Read a committed version from its file.

    Raises:
        ConfigError: there is no such file, or it is no committed version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA_KEY])
            plan = SharingPlan.from_dict(about["plan"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return ModelState(plan, values, int(about["version"]))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, PlanError) as error:
        raise ConfigError(f"{path} is not a committed version of a model: {error}") from error


def _unshared(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values with memory of their own each, as the file format wants: before the first round copies share it."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for slot_id, value in values.items():
        again = value.numel() > 0 and value.data_ptr() in seen
        seen.add(value.data_ptr())
        result[slot_id] = value.clone() if again else value.contiguous()
    return result


def write_durably(path: Path, content: bytes) -> None:
    """Replace a small file so that after a crash either the old or the new content is there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    _sync_file(temporary)
    temporary.rename(path)
    _sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
