"""``python -m server tokens``: issue, list and revoke the tokens by which clients and operators are known."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from common.arguments import TasksCommand, task_names
from common.config_file import read_yaml
from common.errors import ConfigError
from server.command_end import errors_as_exit_code
from server.tokens import TOKENS_FILE, StoredToken, TokenStore, utc_now

log = logging.getLogger("fedmtl.server")
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Issue, list and revoke the tokens by which clients and operators are known.",
    no_args_is_help=True,
)
UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

RunDir = Annotated[
    Path | None, typer.Option(help="The run directory, which need not exist yet: the tokens are its tokens.json.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="The run's configuration: server.auth.tokens names the file, or run.dir the run directory."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ClientId = Annotated[str | None, typer.Option(help="The client's id.")]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the tokens of a run lie, and which tasks it has, where that is known."""

    store: TokenStore
    tasks: Collection[str] | None


@app.command(cls=TasksCommand)
def add(
    client_id: ClientId = None,
    tasks: Annotated[list[str] | None, typer.Option(help="The tasks that the client may train.")] = None,
    all_tasks: Annotated[bool, typer.Option("--all-tasks", help="The client may train any task of the run.")] = False,
    operator: Annotated[bool, typer.Option("--operator", help="A token to operate the run, not to take part.")] = False,
    name: Annotated[str | None, typer.Option(help="With --operator: whose token it is.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="90m, 12h, 30d, 8w, or a date (its first moment, UTC). Left out: never.")
    ] = None,
    run_dir: RunDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Issue a token. It is printed this once: only its hash is kept."""
    with errors_as_exit_code():
        place = _place(run_dir, config)
        until = None if expires is None else parse_expiry(expires, utc_now())
        first = not place.store.path.exists()
        if operator:
            if name is None or client_id or tasks or all_tasks:
                raise ConfigError("an operator's token: give --operator --name NAME, and no client id or tasks")
            token, record = place.store.add("operator", _checked("--name", name), (), until)
        else:
            if client_id is None or name is not None:
                raise ConfigError("whose token? give --client-id ID with --tasks, or --operator --name NAME")
            allowed = _allowed(task_names(tasks), place.tasks, all_tasks=all_tasks)
            token, record = place.store.add("client", _checked("--client-id", client_id), allowed, until)
        _show_new(token, record, place.store.path, as_json=as_json)
        if first and place.store.path.with_name("server.json").exists():
            log.warning("a server that runs already was started without tokens: it asks for them from its next start")


@app.command("list")
def show(run_dir: RunDir = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show whose tokens there are; secrets are not kept, so none is shown."""
    with errors_as_exit_code():
        place = _place(run_dir, config)
        now = utc_now()
        rows = [_row(token, now) for token in place.store.read().values()]
        if as_json:
            _print(json.dumps(rows, indent=1))
        elif not rows:
            log.info("no tokens in %s", place.store.path)
        else:
            _print(_table(rows))


@app.command()
def revoke(
    client_id: ClientId = None,
    name: Annotated[str | None, typer.Option(help="An operator's name.")] = None,
    token_id: Annotated[str | None, typer.Option("--id", help="One token, by the id that `list` shows.")] = None,
    run_dir: RunDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke tokens for good: all of a client, all of an operator, or one. A running server takes note at once."""
    with errors_as_exit_code():
        if sum(choice is not None for choice in (client_id, name, token_id)) != 1:
            raise ConfigError("which tokens? give one of --client-id ID, --name NAME, --id ID")
        store = _place(run_dir, config).store

        def chosen(token: StoredToken) -> bool:
            if token_id is not None:
                return token.id == token_id
            return (token.role, token.client_id) == (("client", client_id) if name is None else ("operator", name))

        if not any(chosen(token) for token in store.read().values()):
            raise ConfigError(f"{store.path}: no such token; `python -m server tokens list` shows those there are")
        now = utc_now()
        gone = [_row(token, now) for token in store.revoke(chosen)]
        if as_json:
            _print(json.dumps(gone, indent=1))
        elif gone:
            _print(_table(gone))
        else:
            log.info("revoked already")


def parse_expiry(text: str, now: datetime) -> datetime:
    """When a token ends: a number of minutes, hours, days or weeks from now, or a date or moment (UTC if unsaid).

    Raises:
        ConfigError: it is neither, or lies in the past.
    """
    try:
        if span := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
            moment = now + timedelta(**{UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"--expires {text!r}: expected 90m, 12h, 30d or 8w, or a date such as 2030-01-31, or 2030-01-31T18:00Z"
        ) from error
    if moment <= now:
        raise ConfigError(f"--expires {text!r}: that is in the past")
    return moment


def _place(run_dir: Path | None, config: Path | None) -> _Place:
    """The file that a server started with these options asks; `server.authentication` looks in the same places."""
    from server.config import load_config, resolve_config  # what the two short cases below need not wait for

    if run_dir is None and config is None:
        raise ConfigError("which run? give --run-dir DIR or --config FILE")
    kept = run_dir / "config.yaml" if run_dir is not None else None
    if config is not None:
        loaded = load_config(config)
    elif kept is not None and kept.exists():
        loaded = resolve_config(read_yaml(kept), str(kept), kept.parent)
    else:
        assert run_dir is not None
        return _Place(TokenStore(run_dir / TOKENS_FILE), None)
    folder = run_dir or loaded.config.run.dir
    path = loaded.config.server.auth.tokens or (folder / TOKENS_FILE if folder is not None else None)
    if path is None:
        raise ConfigError(
            f"{loaded.source}: it does not say where tokens are kept: set server.auth.tokens to a file, or run.dir to "
            "the run directory (or give --run-dir)"
        )
    return _Place(TokenStore(path), loaded.specs.keys())


def _allowed(names: tuple[str, ...], configured: Collection[str] | None, *, all_tasks: bool) -> tuple[str, ...] | str:
    if bool(names) == all_tasks:
        raise ConfigError("for which tasks? give --tasks NAME [NAME ...] or --all-tasks")
    if all_tasks:
        return "*"
    if configured is not None and (unknown := sorted(set(names) - set(configured))):
        raise ConfigError(f"no task {', '.join(unknown)}; this run has: {', '.join(sorted(configured))}")
    return tuple(dict.fromkeys(names))


def _checked(option: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ConfigError(f"{option} {name!r}: 1 to 64 letters, digits, '_', '.', '-'")
    return name


def _show_new(token: str, record: StoredToken, path: Path, *, as_json: bool) -> None:
    if as_json:
        _print(json.dumps({"token": token, **_row(record, utc_now())}, indent=1))
        return
    whose = f"operator {record.client_id}" if record.role == "operator" else f"client {record.client_id}"
    log.info("a token for %s, kept as a hash in %s; this is the only time that it is shown:", whose, path)
    # Alone on standard output, so that a script can take it from there.
    _print(token)


def _row(token: StoredToken, now: datetime) -> dict[str, Any]:
    """A record for people and scripts: without the hash."""
    return {**token.model_dump(mode="json", exclude={"secret_sha256"}), "state": token.state(now)}


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("id", "role", "name", "tasks", "state", "created", "expires")
    lines = [head]
    for row in rows:
        tasks = "all" if row["tasks"] == "*" else " ".join(row["tasks"]) or "-"
        moments = [str(row[key])[:16].replace("T", " ") if row[key] else "never" for key in ("created", "expires")]
        lines.append((row["id"], row["role"], row["client_id"], tasks, row["state"], moments[0], moments[1]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
