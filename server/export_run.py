"""Export one task out of a run directory, without the server and without the encoder's original files."""

from __future__ import annotations

import json
from pathlib import Path

from common.config_file import read_yaml
from common.errors import ConfigError
from common.families.saved import read_family
from common.tasks import load_registry
from server.export import ExportReport, export_task
from server.run_directory import load_version


def export_run(
    run: Path, task: str, out: Path, version: int | str = "last", *, first_values: bool = False
) -> ExportReport:
    """Write the model of `task` as of a committed version to `out`.

    Args:
        run: the run directory.
        task: one of its tasks.
        out: made when missing.
        version: a version's number, ``last`` for the newest on disk, or ``best`` for the best one of this task by the
            configuration's `selection`.
        first_values: what lives on the clients, and nobody else has, gets the values that all of them began with.

    Raises:
        ConfigError: no run, task or version of that name, `out` can't be written, or a part of the model lives on the
            clients and `first_values` is off.
    """
    if not (run / "run.db").exists():
        raise ConfigError(f"--run {run}: not a run directory (there is no run.db)")
    source = run / "config.yaml"
    specs = load_registry(read_yaml(source).get("tasks", {}), str(source))
    if task not in specs:
        raise ConfigError(f"--task {task}: this run has the tasks {', '.join(sorted(specs))}")
    kept = sorted((run / "model").glob("round-*.safetensors"))
    if not kept:
        raise ConfigError(f"--run {run}: no version was committed")
    path = _file_of(run, task, str(version), kept[-1])
    if not path.exists():
        raise ConfigError(f"--version {version}: on disk are {', '.join(file.stem for file in kept)}")
    description, assets = read_family(run / "family")
    model = load_version(path)
    at_home = [slot.parameter for slot in model.plan.slice({task}).slots if slot.residence == "client"]
    if at_home and not first_values:
        shown = ", ".join(at_home[:3]) + (f" and {len(at_home) - 3} more" if len(at_home) > 3 else "")
        raise ConfigError(
            f"--task {task}: {shown} live on its clients (federation.resident), so the server has no trained values of "
            "them. --first-values exports the model with those that every client began with; it is nobody's model"
        )
    return export_task(description, assets, model.for_task(task, first_values=True), specs[task], out)


def _file_of(run: Path, task: str, version: str, newest: Path) -> Path:
    """The file of a version, which may be gone."""
    if version == "last":
        return newest
    if version == "best":
        return run / "model" / f"round-{_best_of(run, task):05d}.safetensors"
    if not version.isdecimal():
        raise ConfigError(f"--version {version}: allowed are best, last, or the number of a version")
    return run / "model" / f"round-{int(version):05d}.safetensors"


def _best_of(run: Path, task: str) -> int:
    """The best version of a task, as the run's summary says: it names none whose file has been removed."""
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return int(summary["best"][task]["version"])
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--version best: {path} can't be read: {error}; --resume writes it anew") from error
    except KeyError as error:
        raise ConfigError(
            f"--version best: no version of {task} has been evaluated yet; take --version last"
        ) from error
