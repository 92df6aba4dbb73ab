"""Imports point one way, and every module says in its first line what it is for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "common": {"common"},
    "server": {"server", "common"},
    "client": {"client", "common"},
    "experiments": {"experiments", "server", "client", "common"},
}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
#: Connections and event loops belong to the two programs; the code they share is tested dry.
EDGES = {"asyncio", "fastapi", "socket", "sqlite3", "starlette", "uvicorn", "websockets"}


def imported(source: str) -> set[str]:
    """The top-level names of what a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which package is meant"
            found.add((node.module or "").partition(".")[0])
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_reader_of_imports_sees_those_in_functions() -> None:
    assert imported("import a.b\ndef f():\n    from c.d import e\n") == {"a", "c"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_packages_import_downwards_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = imported(path.read_text()) & {
        "server", "client", "common", "experiments", "tests", "benchmarks", "scripts",
    }  # fmt: skip
    assert forbidden <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(ROOT).parts[0] == "common"], ids=name)
def test_shared_code_opens_no_connections(path: Path) -> None:
    # The outbox waits on an event; sockets stay with its two owners.
    allowed = {"asyncio"} if name(path) == "common/outbox.py" else set()
    assert not imported(path.read_text()) & (EDGES - allowed)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_unpickles(path: Path) -> None:
    assert not imported(path.read_text()) & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    source = path.read_text()
    if source.strip():
        assert ast.get_docstring(ast.parse(source))


def test_folders_of_tests_are_packages_so_that_none_hides_the_code() -> None:
    for folder in {path.parent for path in (ROOT / "tests").rglob("*.py")}:
        assert (folder / "__init__.py").exists(), f"{name(folder)} lacks an __init__.py"
