"""Folders that commands write to: looked at before anything is computed, so that no result is lost for want of one."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import ConfigError


def made_folder(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        ConfigError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: the folder {folder} can't be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: the folder {folder} can't be written to: no permission")
    return folder


def made_place(file: Path) -> Path:
    """The file, its folder made if need be.

    Raises:
        ConfigError: the folder can't be made or written to, or the file is a folder.
    """
    if file.is_dir():
        raise ConfigError(f"--out {file}: a folder; name the file to write")
    return made_folder(file.parent) / file.name
