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


def export_run(run: Path, task: str, out: Path, version: int | str = "last") -> ExportReport:
    """Write the model of `task` as of a committed version to `out`.

    Args:
        run: the run directory.
        task: one of its tasks.
        out: made when missing.
        version: a version's number, ``last`` for the newest on disk, or ``best`` for the best one of this task by the
            configuration's `selection`.

    Raises:
        ConfigError: no run, task or version of that name, or `out` can't be written.
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
    return export_task(description, assets, load_version(path).for_task(task), specs[task], out)


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
