"""Public data sets: where their files come from, and whether a file is the one it should be."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import httpx

from common.data.files import find_file
from common.errors import DataError

#: Seconds without any progress before a download is given up.
TIMEOUT: Final = 30.0
#: An archive of more bytes is none of these data sets.
LARGEST_ARCHIVE: Final = 256 * 2**20
_CHUNK: Final = 2**20


@dataclass(frozen=True)
class DataFile:
    """A file of a data set, unpacked: its name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        page: where a person reads about it and gets it.
        url: a zip archive that holds the files, or archives with them.
        folder: where they lie, below the folder of the data sets.
        files: what is needed of it.
    """

    page: str
    url: str
    folder: str
    files: tuple[DataFile, ...]


_ADULT: Final = DataSet(
    "https://archive.ics.uci.edu/dataset/2/adult",
    "https://archive.ics.uci.edu/static/public/2/adult.zip",
    "census_income",
    (
        DataFile("adult.data", 3_974_305, "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"),
        DataFile("adult.test", 2_003_153, "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"),
    ),
)
_KDD: Final = DataSet(
    "https://archive.ics.uci.edu/dataset/117/census+income+kdd",
    "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip",
    "census_income_kdd",
    (
        DataFile("census-income.data", 103_874_469, "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86"),
        DataFile("census-income.test", 51_918_813, "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c"),
    ),
)
#: Shipped problem to the data set that it reads.
DATA_SETS: Final[Mapping[str, DataSet]] = {"adult": _ADULT, "census-kdd": _KDD, "census-kdd-education": _KDD}


def is_there(file: DataFile, folder: Path) -> bool:
    """Whether a folder holds the file, packed or not, byte for byte."""
    path = find_file(folder / file.name)
    if path is None:
        return False
    digest = hashlib.sha256()
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
    except (OSError, EOFError, zlib.error):
        return False
    return digest.hexdigest() == file.sha256


def fetch(data_set: DataSet, folder: Path, url: str) -> None:
    """Download the archive and put the files, unpacked, into a folder; none is written before all are right.

    Args:
        url: of the archive.

    Raises:
        DataError: there is no network, the server answers with something else, or a file is not the published one.
    """
    found: dict[str, bytes] = {}
    wanted = {file.name: file for file in data_set.files}
    try:
        for name, content in _members(_downloaded(url)):
            if (file := wanted.get(name)) is not None and (data := content.read(file.size + 1)):
                found[name] = data
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataError(f"{url} can't be had: {type(error).__name__}: {error}") from error
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{url} is no archive that can be read: {type(error).__name__}: {error}") from error
    for name, file in wanted.items():
        if hashlib.sha256(found.get(name, b"")).hexdigest() != file.sha256:
            what = "is not the file that was published (its SHA-256 differs)" if name in found else "is not in it"
            raise DataError(f"{url}: {name} {what}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            partial = folder / f"{name}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)
    except OSError as error:
        raise DataError(f"{folder} can't be written: {error}") from error


def _downloaded(url: str) -> bytes:
    content = bytearray()
    with httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes(_CHUNK):
            content += chunk
            if len(content) > LARGEST_ARCHIVE:
                raise DataError(f"{url} holds more than {LARGEST_ARCHIVE:,} bytes: no archive of this data set")
    return bytes(content)


def _members(archive: bytes) -> Iterator[tuple[str, IO[bytes]]]:
    """The files in a zip archive and in the tar archives inside it: name without folders, and content."""
    with zipfile.ZipFile(io.BytesIO(archive)) as outer:
        for entry in outer.infolist():
            name = entry.filename.rpartition("/")[2]
            with outer.open(entry) as content:
                if not name.endswith((".tar.gz", ".tgz")):
                    yield name, content
                    continue
                with tarfile.open(fileobj=content, mode="r|gz") as inner:
                    for member in inner:
                        if (packed := inner.extractfile(member)) is not None:
                            yield member.name.rpartition("/")[2], packed
