"""Results of a grid of experiments, a file each, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from common.durable import DURABLE
from common.errors import ConfigError, DataError

#: Beside the cells' files: what they were all computed with.
SETTINGS: Final = "settings.json"


class CellStore:
    """Cells by name in one folder, all computed with the same settings.

    Safe for several threads that write different cells. A cell is there whole or not at all, whenever the process dies.

    Args:
        folder: made if need be.
        settings: all that decides what a cell holds, beside its name; plain data.

    Raises:
        ConfigError: the folder holds cells of other settings.
        DataError: what it holds was not written by this class.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if not kept.exists():
            DURABLE.replace(kept, _as_bytes(wanted))
            return
        found = _read(kept)
        if found != wanted:
            differing = [
                f"{key} {json.dumps(found.get(key))} there, {json.dumps(wanted.get(key))} now"
                for key in sorted(found.keys() | wanted.keys())
                if found.get(key) != wanted.get(key)
            ]
            raise ConfigError(
                f"{folder}: holds results of other settings ({'; '.join(differing)}); "
                "give the same settings to go on with them, or another folder"
            )

    def get(self, name: str) -> dict[str, Any] | None:
        """The cell of this name; None if it is still to be computed."""
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, name: str, cell: Mapping[str, Any]) -> None:
        """Keep a cell; numbers must be finite."""
        DURABLE.replace(self._path(name), _as_bytes(cell))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All cells, by name."""
        for path in sorted(self._folder.glob("*.json")):
            if path.name != SETTINGS:
                yield _read(path)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _as_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); remove the file to compute it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not one JSON object; remove the file to compute it again")
    return found
