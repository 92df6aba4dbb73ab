"""``python -m server``: run a federation, or export a model out of a finished one."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.config_file import apply_overrides, read_yaml
from common.console import set_up_logging
from common.errors import FedmtlError

log = logging.getLogger("fedmtl.server")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML configuration, such as configs/glue.yaml.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Set one key: key.path=value. May be repeated.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run directory; default runs/<run-id>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Run a federation."""
    set_up_logging(verbose=verbose)
    if context.invoked_subcommand is not None:
        return
    # Imported here, as torch takes a second that a mistyped command should not.
    from server.config import load_config, resolve_config
    from server.serve import serve

    try:
        if resume and config is None:
            if run_dir is None:
                raise typer.BadParameter("--resume needs --run-dir (or --config with run.dir)")
            kept = run_dir / "config.yaml"
            loaded = resolve_config(apply_overrides(read_yaml(kept), overrides or []), str(kept), run_dir)
        elif config is not None:
            loaded = load_config(config, overrides or [])
        else:
            raise typer.BadParameter("give --config FILE (or --resume --run-dir DIR)")
        code = serve(loaded, run_dir, resume=resume)
    except FedmtlError as error:
        log.error("%s", error)  # noqa: TRY400  # the operator needs the sentence, not our stack
        code = error.exit_code
    raise typer.Exit(code)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="A run directory.")],
    task: Annotated[str, typer.Option(help="The task to export.")],
    out: Annotated[Path, typer.Option(help="Folder to write; made when missing.")],
    version: Annotated[int | None, typer.Option(help="A committed version; default the newest.")] = None,
) -> None:
    """Write one task's model as a folder that `transformers` loads."""
    from server.export_run import export_run

    try:
        report = export_run(run, task, out, version)
    except FedmtlError as error:
        log.error("%s", error)  # noqa: TRY400
        raise typer.Exit(error.exit_code) from error
    lines = (f"{report.task} as {report.model_class} in {report.folder}", report.note, *report.load_lines)
    sys.stdout.write("\n".join(line for line in lines if line) + "\n")


if __name__ == "__main__":
    # Before torch is imported: idle worker threads should sleep, not spin, beside client processes.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
