"""Export one task out of a run directory, without the server and without the encoder's original files."""

from __future__ import annotations

from pathlib import Path

from common.config_file import read_yaml
from common.errors import ConfigError
from common.families.saved import read_family
from common.tasks import load_registry
from server.export import ExportReport, export_task
from server.run_directory import load_version


def export_run(run: Path, task: str, out: Path, version: int | None = None) -> ExportReport:
    """Write the model of `task` as of a committed version (default: the newest) to `out`.

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
    path = kept[-1] if version is None else run / "model" / f"round-{version:05d}.safetensors"
    if not path.exists():
        raise ConfigError(f"--version {version}: on disk are {', '.join(file.stem for file in kept)}")
    description, assets = read_family(run / "family")
    return export_task(description, assets, load_version(path).for_task(task), specs[task], out)
