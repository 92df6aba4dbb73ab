"""``python -m experiments``: which command is found, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from common.errors import DataError
from experiments.__main__ import COMMANDS, app


def command(name: Annotated[str, typer.Option()], fail: Annotated[bool, typer.Option("--fail")] = False) -> None:
    if fail:
        raise DataError("census.csv: there is no such file")
    sys.stdout.write(f"hello {name}\n")


@pytest.fixture(autouse=True)
def _a_command_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "experiments.train_command", ModuleType("experiments.train_command"))
    monkeypatch.setattr(sys.modules["experiments.train_command"], "command", command, raising=False)


def test_a_command_is_the_function_of_its_module() -> None:
    found = CliRunner().invoke(app, ["train", "--name", "Ada"])
    assert (found.exit_code, found.stdout) == (0, "hello Ada\n")


def test_an_error_raised_on_purpose_ends_with_its_exit_code_and_no_traceback() -> None:
    found = CliRunner().invoke(app, ["train", "--name", "Ada", "--fail"])
    assert found.exit_code == 2
    assert "there is no such file" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_modules_own_kind_of_command_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loud(typer.core.TyperCommand):
        def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's
            return super().parse_args(ctx, [word.replace("Ada", "ADA") for word in args])

    monkeypatch.setitem(
        sys.modules,
        "experiments.train_command",
        SimpleNamespace(command=command, Command=Loud),
    )
    assert CliRunner().invoke(app, ["train", "--name", "Ada"]).stdout == "hello ADA\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["trian"]).exit_code == 2


def test_help_names_every_command_and_imports_no_torch() -> None:
    code = (
        "import sys, contextlib; from experiments.__main__ import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "sys.exit(any(name.partition('.')[0] in ('torch', 'mlflow', 'plotly') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_help_shows_defaults_that_depend(monkeypatch: pytest.MonkeyPatch) -> None:
    # In brackets inside a help text they would be taken for markup and vanish.
    monkeypatch.delitem(sys.modules, "experiments.train_command")
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout
    for said in ("[default: (mmoe)]", "[default: (all cores; a client: one)]", "single_task, shared_bottom"):
        assert said in shown
