"""Tokenised rows on this machine's disk, so that a client that starts again, or another of the same data, maps them.

One file per rows, tokenizer and longest input; its name is a digest of all that decides the ids. Files are mapped into
memory, read-only: clients of one machine share the pages. They are written under a temporary name and renamed, so a
reader finds a whole file or none; one that is damaged all the same is logged and made again. The ids are this client's
data in another form: the folder is its owner's alone.

Layout: `_MAGIC`, the length of the header (8 bytes, little-endian), the header (JSON), blanks up to a multiple of 64,
then offsets (int64), ids (int32) and, where the encoder takes them, type ids (uint8), little-endian.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

from common.errors import ConfigError
from common.families.encoded_text import EncodedText, labels_of, weights_of

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.families.base import EncodedSplit, Family

log = logging.getLogger("fedmtl.client")

#: Rows below which tokenising takes no longer than opening a file is worth.
WORTHWHILE_ROWS: Final = 2000
#: Bytes of all files together; beyond them those that were not used for longest are removed.
LIMIT_BYTES: Final = 4 << 30
OFF: Final = "off"

_MAGIC: Final = b"fedmtl tokens 1\n"
_SUFFIX: Final = ".tokens"
_ALIGNMENT: Final = 64


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/fedmtl``, or ``~/.cache/fedmtl``.

    Raises:
        ConfigError: this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path there is to be ignored.
    if os.path.isabs(given):
        return Path(given) / "fedmtl"
    try:
        return Path.home() / ".cache" / "fedmtl"
    except RuntimeError as error:
        raise ConfigError(
            f"no folder for tokenised rows: {error} Give --cache-dir PATH, or --cache-dir off."
        ) from error


class TokenCache:
    """Encodes rows, from the disk where they have been encoded before.

    Args:
        folder: where files are kept, made when first needed; None keeps none.
        worthwhile_rows: fewer rows are not kept.
    """

    def __init__(self, folder: Path | None, worthwhile_rows: int = WORTHWHILE_ROWS) -> None:
        self._folder = None if folder is None else folder / "tokens"
        self._worthwhile_rows = worthwhile_rows

    def encode(self, family: Family, task: str, examples: Examples) -> EncodedSplit:
        """What ``family.encode(task, examples)`` gives.

        Raises:
            DataError: a row can't be read.
        """
        key = family.encoding_key(task)
        if self._folder is None or key is None or len(examples.labels) < self._worthwhile_rows:
            return family.encode(task, examples)
        texts = [examples.columns[column] for column in family.tasks[task].text if column in examples.columns]
        path = self._folder / f"{_digest(key, texts)}{_SUFFIX}"
        found = _load(path)
        if found is not None:
            ids, type_ids, offsets, pad_id = found
            return EncodedText(
                ids, type_ids, offsets, labels_of(family.tasks[task], examples), pad_id, weights_of(examples)
            )
        split = family.encode(task, examples)
        if isinstance(split, EncodedText):
            self._keep(path, split)
        return split

    def _keep(self, path: Path, split: EncodedText) -> None:
        """Write a file; a disk that does not take it is logged, as the rows are in memory anyway."""
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(partial, split)
            partial.replace(path)
            _prune(path.parent, path)
        except OSError as error:
            log.warning("tokenised rows could not be kept in %s (%s)", path.parent, error.strerror or error)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _digest(key: str, texts: Sequence[Sequence[str] | np.ndarray]) -> str:
    """Digest of the rows' texts, and of what turns them into ids."""
    digest = hashlib.blake2b(key.encode(), digest_size=20)
    for column in texts:
        rows = [str(text).encode() for text in column]
        digest.update(np.fromiter(map(len, rows), dtype="<i8", count=len(rows)).tobytes())
        digest.update(b"".join(rows))
    return digest.hexdigest()


def _write(path: Path, split: EncodedText) -> None:
    arrays = [split.offsets.astype("<i8"), split.ids.astype("<i4")]
    if split.type_ids is not None:
        arrays.append(split.type_ids.astype("u1"))
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(array.data.cast("B") if array.size else b"")
    header = {
        "rows": len(split),
        "tokens": len(split.ids),
        "type_ids": split.type_ids is not None,
        "pad_id": split.pad_id,
        "checksum": digest.hexdigest(),
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(_MAGIC) + 8 + len(text)) % _ALIGNMENT)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.data.cast("B") if array.size else b"")


def _load(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int] | None:
    """Ids, type ids, offsets and padding id of a file; None where there is none that is whole."""
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found = _parse(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("tokenised rows in %s are of no use and are made again: %s", path, error)
        return None
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(path)  # used now
    return found


def _parse(content: memoryview) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int]:
    """Raises ValueError, KeyError or TypeError for what `_write` did not write whole."""
    start = len(_MAGIC) + 8
    if bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise ValueError("it begins otherwise")
    size = int.from_bytes(content[len(_MAGIC) : start], "little")
    header = json.loads(bytes(content[start : start + size]))
    payload = content[start + size :]
    rows, tokens, pad_id = int(header["rows"]), int(header["tokens"]), int(header["pad_id"])
    expected = 8 * (rows + 1) + 4 * tokens + (tokens if header["type_ids"] else 0)
    if payload.nbytes != expected:
        raise ValueError(f"{payload.nbytes} bytes of tokens, not {expected}")
    if xxhash.xxh3_128_hexdigest(payload) != header["checksum"]:
        raise ValueError("the checksum is another")
    offsets = np.frombuffer(payload, "<i8", count=rows + 1)
    ids = np.frombuffer(payload, "<i4", count=tokens, offset=offsets.nbytes)
    type_ids = np.frombuffer(payload, "u1", offset=offsets.nbytes + ids.nbytes) if header["type_ids"] else None
    return ids, type_ids, offsets, pad_id


def _prune(folder: Path, newest: Path) -> None:
    """Remove what was not used for longest until the rest is small enough; what is mapped stays readable."""
    files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob(f"*{_SUFFIX}"))
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= LIMIT_BYTES:
            return
        if file != newest:
            file.unlink(missing_ok=True)
            total -= size
