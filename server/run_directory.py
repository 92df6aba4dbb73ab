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
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, Final

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.durable import DURABLE, Disk
from common.errors import ConfigError, PlanError
from common.failpoints import failpoint
from common.plan import SharingPlan
from server.model_state import ModelState

HASH_BLOCK: Final = 1 << 22
#: How the names of files begin that are made for one download.
DOWNLOAD_PREFIX: Final = ".download-"
_VERSION: Final = re.compile(r"round-(\d{5,})\.safetensors")
#: The one metadata entry of a version's file: JSON with its number and its plan.
METADATA_KEY: Final = "fedmtl"


class RunDirectory:
    """One run's folder, held by one server at a time.

    A run exists from the moment at which its database does: that is made last, complete with version 0, under a
    temporary name. What a server that was killed earlier has left behind is written over by the next one.

    Args:
        path: the folder; made when it is missing.
        resume: go on with what is there, instead of refusing a folder that holds a run.
        disk: how carefully files are written.

    Attributes:
        holds_run: whether there is a run to go on with; with `resume` and without a run, at least its
            configuration is there.

    Raises:
        ConfigError: the folder holds a run and `resume` is off, holds none and `resume` is on, can't be
            made, or another server is using it.
    """

    def __init__(self, path: Path, *, resume: bool = False, disk: Disk = DURABLE) -> None:
        self.path = path.resolve()
        self.disk = disk
        if resume and not (self.database.exists() or self.config.exists()):
            raise ConfigError(f"{path} holds no run to resume (there is no run.db)")
        try:
            for folder in (self.path, self.models, self.spool, self.family):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (self.path / "lock").open("w")
        except OSError as error:
            raise ConfigError(f"the run directory {path} can't be used: {error}; choose another") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"{path} is in use by another server process") from error
        # Only now: the server that held the folder may have made its database meanwhile. A run whose database is gone
        # is a run: its versions say so.
        self.holds_run = self.database.exists() or max(self.versions(), default=0) > 0
        self.sweep()
        if self.holds_run and not resume:
            self._lock.close()
            raise ConfigError(f"{path} holds a run already: go on with --resume, or choose another run directory")
        failpoint("start.directory_made")

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

    @property
    def config(self) -> Path:
        """The configuration as resolved."""
        return self.path / "config.yaml"

    @property
    def address(self) -> Path:
        """Where the server listens while it runs, for the operator's commands."""
        return self.path / "server.json"

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep the configuration as resolved."""
        content = yaml.safe_dump(dict(config), sort_keys=False).encode()
        if not self.config.exists() or self.config.read_bytes() != content:
            self.disk.replace(self.config, content)
        failpoint("start.config_written")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json."""
        self.disk.replace(self.path / "summary.json", json.dumps(dict(summary)).encode() + b"\n")
        failpoint("summary.written")

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
        about = {
            "version": model.version,
            "plan": model.plan.to_dict(),
            "digest": model.plan.digest,
            "checksums": {slot: model.encoded(slot).header.checksum for slot in model.values},
        }
        save_file(_unshared(model.values), temporary, metadata={METADATA_KEY: json.dumps(about, sort_keys=True)})
        failpoint("commit.written")
        digest = sha256_of(temporary)
        self.disk.sync_file(temporary)
        failpoint("commit.synced")
        temporary.replace(path)
        failpoint("commit.renamed")
        self.disk.sync_folder(self.models)
        return digest

    def prune(self, keep: int, newest: int, also: Collection[int] = ()) -> None:
        """Remove committed versions but the first, the newest `keep` and those in `also`.

        After the newest is in the history, and the summary names the best ones.
        """
        for old in [version for version in self.versions() if version <= newest][1:-keep]:
            if old not in also:
                self.version_path(old).unlink()
        failpoint("commit.pruned")

    def set_aside(self, after: int, committed: int | None) -> None:
        """Take the versions after this one out of the way: they are made again.

        Args:
            after: the version to go on from.
            committed: those up to this one were committed, so they are damaged, and kept for somebody to look at;
                None: nobody knows.
        """
        for version in self.versions():
            path = self.version_path(version)
            if committed is not None and version > max(after, committed):
                path.unlink()
            elif version > after:
                path.replace(path.with_suffix(".safetensors.damaged"))
        self.disk.sync_folder(self.models)

    def sweep(self) -> None:
        """Remove what a server that was killed has left half made."""
        for leftover in self.path.glob(f"{DOWNLOAD_PREFIX}*"):
            leftover.unlink(missing_ok=True)

    def versions(self) -> list[int]:
        """The committed versions on disk, ascending."""
        names = (_VERSION.fullmatch(path.name) for path in self.models.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def load(self, version: int) -> ModelState:
        """Read a committed version back; see `load_version`."""
        return load_version(self.version_path(version))


class DamagedVersion(ConfigError):
    """A version's file is missing, torn or altered."""


def load_version(path: Path) -> ModelState:
    """Read a committed version from its file, and compare every tensor with its checksum.

    Returns:
        the model, already encoded for the wire: that is where the checksums come from.

    Raises:
        DamagedVersion: there is no such file, or it is not what was committed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA_KEY])
            plan = SharingPlan.from_dict(about["plan"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            model = ModelState(plan, values, int(about["version"]))
            checksums, digest = dict(about["checksums"]), str(about["digest"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, PlanError) as error:
        raise DamagedVersion(f"{path} is not a committed version of a model: {error}") from error
    model.encode()
    if altered := [slot for slot in values if model.encoded(slot).header.checksum != checksums.get(slot)]:
        raise DamagedVersion(f"{path} is damaged: slot {altered[0]!r} does not have its checksum")
    if plan.digest != digest:
        raise DamagedVersion(f"{path} is damaged: its plan does not have its digest")
    return model


def _unshared(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values with memory of their own each, as the file format wants: before the first round copies share it."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for slot_id, value in values.items():
        again = value.numel() > 0 and value.data_ptr() in seen
        seen.add(value.data_ptr())
        result[slot_id] = value.clone() if again else value.contiguous()
    return result


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
