"""Fetching a data set from a server on this machine, and what is said where there is none."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, DataError
from experiments import data_command, download
from experiments.data_command import command
from experiments.download import DataFile, DataSet

CONTENT = {"tiny.data": b"1, a\n2, b\n", "tiny.test": b"3, a\n"}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401  # the name is the library's
        pass


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """A data set of two small files, shipped under the name tiny."""
    files = tuple(DataFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())
    data_set = DataSet("https://example.org/tiny", "https://example.org/tiny.zip", "tiny_set", files)
    for module in (data_command, download):
        monkeypatch.setattr(module, "DATA_SETS", {"tiny": data_set})
    return data_set


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def write_zip(path: Path, content: dict[str, bytes], *, nested: bool) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Index", "not wanted")
        if not nested:
            for name, data in content.items():
                archive.writestr(f"folder/{name}", data)
            return
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w:gz") as tar:
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        archive.writestr("inner.tar.gz", inner.getvalue())


@pytest.mark.parametrize("nested", [False, True])
def test_files_are_fetched_once_and_kept_unpacked(
    tiny: DataSet, served: tuple[Path, str], tmp_path: Path, nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, address = served
    write_zip(folder / "tiny.zip", CONTENT, nested=nested)
    command("tiny", tmp_path / "data", f"{address}/tiny.zip")
    for name, data in CONTENT.items():
        assert (tmp_path / "data" / tiny.folder / name).read_bytes() == data
    (folder / "tiny.zip").unlink()
    capsys.readouterr()
    command("tiny", tmp_path / "data", f"{address}/tiny.zip")
    assert "all files of tiny are there" in capsys.readouterr().out


def test_a_file_that_is_not_the_published_one_is_not_kept(
    tiny: DataSet, served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    for content, said in (
        (CONTENT | {"tiny.test": b"3, b\n"}, "tiny.test is not the file that was published"),
        (CONTENT | {"tiny.test": CONTENT["tiny.test"] + b"more"}, "tiny.test is not the file that was published"),
        ({"tiny.data": CONTENT["tiny.data"]}, "tiny.test is not in it"),
    ):
        write_zip(folder / "tiny.zip", content, nested=False)
        with pytest.raises(DataError, match=said):
            command("tiny", tmp_path, f"{address}/tiny.zip")
    (folder / "tiny.zip").write_bytes(b"<html>")
    with pytest.raises(DataError, match="no archive"):
        command("tiny", tmp_path, f"{address}/tiny.zip")
    assert not (tmp_path / tiny.folder).exists()


def test_without_a_network_it_is_said_which_files_go_where(
    tiny: DataSet, served: tuple[Path, str], tmp_path: Path
) -> None:
    _, address = served
    with pytest.raises(DataError, match="404") as absent:
        command("tiny", tmp_path, f"{address}/tiny.zip")
    assert absent.value.exit_code == 2
    for expected in (str(tmp_path / "tiny_set" / "tiny.data"), "tiny.test", tiny.page, "10 bytes"):
        assert expected in str(absent.value)
    with pytest.raises(DataError, match="can't be had: ConnectError"):
        command("tiny", tmp_path, "http://127.0.0.1:1/tiny.zip")
    with pytest.raises(ConfigError, match="'tony': allowed are tiny"):
        command("tony", tmp_path)


def test_a_packed_file_is_there_too_and_a_broken_one_is_not(tiny: DataSet, tmp_path: Path) -> None:
    file = tiny.files[0]
    assert not download.is_there(file, tmp_path)
    packed = gzip.compress(CONTENT[file.name])
    (tmp_path / f"{file.name}.gz").write_bytes(packed)
    assert download.is_there(file, tmp_path)
    (tmp_path / f"{file.name}.gz").write_bytes(packed[:-9])
    assert not download.is_there(file, tmp_path)


def test_every_shipped_problem_names_files_that_can_be_fetched() -> None:
    from experiments.problems import shipped_problems
    from experiments.problems.problem import _read

    for name, path in shipped_problems().items():
        files = _read(path, name).files
        data_set = download.DATA_SETS[name]
        expected = {f"{data_set.folder}/{file.name}" for file in data_set.files}
        assert {str(file).removesuffix(".gz") for file in (files.train, files.test)} == expected
