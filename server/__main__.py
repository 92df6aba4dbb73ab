"""``python -m server``: run a federation, operate a running one, or export a model out of a finished one."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.config_file import apply_overrides, read_yaml
from common.console import LogFormat, set_up_logging
from common.errors import EXIT_OK
from server import operator_command, tokens_command
from server.command_end import errors_as_exit_code

log = logging.getLogger("fedmtl.server")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True)
app.add_typer(tokens_command.app, name="tokens")
operator_command.add_to(app)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML configuration, such as configs/glue.yaml.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Set one key: key.path=value. May be repeated.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run directory; default runs/<run-id>.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Start a server that goes on with the stopped or killed run in --run-dir. "
            "(A run that is paused goes on with the command `resume`.)",
        ),
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate, PEM (server.tls.cert).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM (server.tls.key).")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Mutual TLS: who signs the clients' certificates, PEM (server.tls.client_ca).")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Listen off loopback with no authentication at all.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Lines for people, or a JSON object per line.")] = "text",
) -> None:
    """Run a federation."""
    set_up_logging(verbose=verbose, format=log_format)
    if context.invoked_subcommand is not None:
        return
    # Imported here, as torch takes a second that a mistyped command should not.
    from server.config import load_config, resolve_config
    from server.serve import serve

    with errors_as_exit_code():
        if resume and config is None:
            if run_dir is None:
                raise typer.BadParameter("--resume needs --run-dir (or --config with run.dir)")
            kept = run_dir / "config.yaml"
            loaded = resolve_config(apply_overrides(read_yaml(kept), overrides or []), str(kept), run_dir.resolve())
        elif config is not None:
            loaded = load_config(config, overrides or [])
        else:
            raise typer.BadParameter("give --config FILE (or --resume --run-dir DIR)")
        files = {"cert": tls_cert, "key": tls_key, "client_ca": tls_client_ca}
        loaded = loaded.with_options(tls=files, allow_anonymous=allow_anonymous)
        try:
            # Until the run is up, SIGTERM is as Ctrl-C: nothing has to be ended in order yet.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            code = serve(loaded, run_dir, resume=resume)
        except KeyboardInterrupt:
            log.info("stopped before the run was up")
            code = EXIT_OK
    raise typer.Exit(code)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="A run directory.")],
    task: Annotated[str, typer.Option(help="The task to export.")],
    out: Annotated[Path, typer.Option(help="Folder to write; made when missing.")],
    version: Annotated[
        str,
        typer.Option(help="best (for this task, by the configuration's `selection`), last, or a number of a version."),
    ] = "last",
    first_values: Annotated[
        bool,
        typer.Option("--first-values", help="Where clients keep a part to themselves: with the values it began with."),
    ] = False,
) -> None:
    """Write one task's model as a folder that `transformers` loads."""
    from server.export_run import export_run

    with errors_as_exit_code():
        report = export_run(run, task, out, version, first_values=first_values)
    lines = (f"{report.task} as {report.model_class} in {report.folder}", report.note, *report.load_lines)
    sys.stdout.write("\n".join(line for line in lines if line) + "\n")


if __name__ == "__main__":
    # Before torch is imported: idle worker threads should sleep, not spin, beside client processes.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
