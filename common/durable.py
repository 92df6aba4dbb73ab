"""Files that survive a crash: the order of write, fsync, rename and fsync of the folder, in one place.

Everything here blocks: call it off the event loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Disk:
    """How carefully files are written.

    Attributes:
        fsync: wait until the device has what was written. Without it a file still survives the death of the
            process at any instant, but not that of the machine.
    """

    fsync: bool = True

    def sync(self, descriptor: int) -> None:
        """Wait until the content of an open file is on the device."""
        if self.fsync:
            os.fsync(descriptor)

    def sync_file(self, path: Path) -> None:
        """Wait until the content of a file is on the device."""
        if self.fsync:
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are on the device: what was made, renamed or removed there."""
        if self.fsync:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def replace(self, path: Path, content: bytes, mode: int | None = None) -> None:
        """Replace a small file so that after a crash either the old or the new content is there, whole.

        `mode` are the file's permissions, which it has before anything is in it; None leaves them to the umask.
        """
        temporary = path.with_name(path.name + ".tmp")
        if mode is not None:
            # Anew: one left behind by a crash may be open to more readers than this one is to be.
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
        temporary.write_bytes(content)
        self.sync_file(temporary)
        temporary.replace(path)
        self.sync_folder(path.parent)


DURABLE: Final = Disk()
