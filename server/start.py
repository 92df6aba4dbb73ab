"""How a run comes to its first version, or back to its last good one.

A new run is made in this order, each step durable before the next: configuration, family, version 0, database. The
database is made last and under a temporary name, so that a run either exists with a committed version or not at all.

A resumed run goes on from the newest version whose file has its checksums. What is damaged is said in the log: an older
version is made anew from there, and a damaged database is set aside and begun anew from the version's file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Final

from common.config_file import read_yaml
from common.errors import ConfigError
from common.failpoints import failpoint
from common.families import build_family, family_from_description
from common.families.base import Family
from common.families.saved import read_family, write_family
from common.plan_diff import diff
from server.config import LoadedConfig, resolve_config
from server.coupling import check_ties
from server.course import Course
from server.history import History
from server.model_state import ModelState
from server.run_directory import DamagedVersion, RunDirectory, sha256_of
from server.selection import Selection
from server.spool import Spool
from server.strategy import initial_plan
from server.training_settings import check_selectors
from server.unfreezing import Schedule, resolve_schedule

log = logging.getLogger("fedmtl.server")
#: What a run can't change on its way.
_FIXED: Final = (
    ("model",), ("tasks",), ("federation", "mode"), ("federation", "resident"), ("federation", "correction"),
    ("run", "seed"),
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What a server needs to go on.

    Attributes:
        family: the model family.
        model: the version to go on from, encoded.
        history: the run's database.
        course: the plans to come, and when the run ends.
        run_id: the run's id.
        resumed: the run began in an earlier process.
        finished: it reached its target there: nothing is left to do.
    """

    family: Family
    model: ModelState
    history: History
    course: Course
    run_id: str
    resumed: bool
    finished: bool = False


def begin(loaded: LoadedConfig, directory: RunDirectory, run_id: str) -> Start:
    """Make a new run and commit its version 0.

    Raises:
        ConfigError: the model can't be built, or has nothing of what `freezing` or the training settings choose.
    """
    directory.write_config(resolved(loaded, run_id))
    with _problems_of(loaded.source):
        family = build_family(loaded.config.model, loaded.specs, base_dir=loaded.base_dir)
    _check_training(loaded, family)
    write_family(family.describe(), family.assets(), directory.family)
    for path in sorted(directory.family.iterdir()):
        directory.disk.sync_file(path)
    directory.disk.sync_folder(directory.family)
    failpoint("start.family_written")
    rules = loaded.config.federation
    with _problems_of(loaded.source):
        plan = initial_plan(rules.mode, family.blueprint(), rules.resident, rules.correction)
    check_ties(family.ties(), plan, loaded.source)
    schedule = resolve_schedule(loaded.config.freezing, plan, loaded.source)
    _tell_of_late_stages(schedule, loaded)
    course = Course(schedule, Selection.of(loaded.config.selection, loaded.specs, loaded.source))
    plan = course.plan_to_start_with(plan)
    model = ModelState.initial(plan, family.initial_values(loaded.config.run.seed))
    model.encode()
    course.made(0, plan)
    began = time.time()
    sha256 = directory.commit(model)
    history = _new_history(directory, model, sha256, run_id, time.time() - began)
    return Start(family, model, history, course, run_id, False)


def go_on(loaded: LoadedConfig, directory: RunDirectory) -> Start:
    """Come back to a run that began earlier.

    Raises:
        ConfigError: no version is whole, or the configuration is that of another run.
    """
    run_id = require_same_run(loaded, directory.config)
    family_description, assets = read_family(directory.family)
    family = family_from_description(family_description, assets, loaded.specs)
    _check_training(loaded, family)
    history = _history_of(directory)
    if history is None:
        model = _newest_whole(directory, {})
        directory.set_aside(model.version, None)
        sha256 = sha256_of(directory.version_path(model.version))
        history = _new_history(directory, model, sha256, run_id, 0.0)
    else:
        model = _newest_whole(directory, {row["version"]: row["sha256"] for row in history.commits()})
        _forget_what_came_after(model.version, directory, history)
        run_id = str(history.get("run_id"))
    try:
        schedule = resolve_schedule(loaded.config.freezing, model.plan, loaded.source)
    except ConfigError:
        history.close()
        raise
    _tell_of_late_stages(schedule, loaded)
    course = Course.restored(schedule, Selection.of(loaded.config.selection, loaded.specs, loaded.source), history)
    model = _under_its_plan(model, course, history)
    directory.write_config(resolved(loaded, run_id))
    log.info("resuming from version %d", model.version)
    ended = model.version >= loaded.config.run.rounds or bool(course.outlook(model.version, model.plan).end)
    finished = history.get("finished") is not None and ended
    return Start(family, model, history, course, run_id, True, finished)


def _under_its_plan(model: ModelState, course: Course, history: History) -> ModelState:
    """The version with the plan that the configuration now gives the next round.

    It is the one the version is stored with, unless `freezing` or `selection` say something else than when it was made.
    Updates of the next round that were made under the other plan don't count then.
    """
    plan = course.plan_of_next(model.version - 1, model.plan)
    if plan == model.plan:
        return model
    log.warning("round %d has another plan than it had before\n%s", model.version + 1, diff(model.plan, plan))
    [row] = [row for row in history.commits() if row["version"] == model.version]
    history.record_commit(model.version, row["sha256"], plan.to_dict(), plan.digest, row["seconds"])
    course.made(model.version, plan)
    return ModelState(plan, model.values, model.version)


@contextmanager
def _problems_of(source: str) -> Iterator[None]:
    """Errors of a key name the file too."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _tell_of_late_stages(schedule: Schedule, loaded: LoadedConfig) -> None:
    rounds = loaded.config.run.rounds
    if late := [stage.from_round for stage in schedule.stages if stage.from_round > rounds]:
        log.warning("freezing opens more from round %s on, and the run ends with round %d", late[0], rounds)


def _check_training(loaded: LoadedConfig, family: Family) -> None:
    config = loaded.config
    check_selectors(config.training, config.training_overrides, family.blueprint(), loaded.source)


def _new_history(directory: RunDirectory, model: ModelState, sha256: str, run_id: str, seconds: float) -> History:
    """A database that begins with this version; it takes its name, and the place of a damaged one, when it is whole."""
    draft = directory.database.with_name("run.db.new")
    for leftover in directory.path.glob("run.db.new*"):
        leftover.unlink()
    history = History(draft, directory.disk)
    history.set("run_id", run_id)
    plan = model.plan
    history.record_commit(model.version, sha256, plan.to_dict(), plan.digest, seconds)
    history.close()  # which moves everything into the one file
    directory.disk.sync_file(draft)
    failpoint("start.database_written")
    if directory.database.exists():
        aside = directory.database.with_name(f"run.db.damaged-{int(time.time())}")
        os.link(directory.database, aside)
        log.warning("the damaged database is kept as %s", aside.name)
    for part in ("-wal", "-shm"):  # of the damaged one: to the new one they would be pages of its own
        directory.database.with_name(f"run.db{part}").unlink(missing_ok=True)
    draft.replace(directory.database)
    directory.disk.sync_folder(directory.path)
    failpoint("start.database_made")
    return History(directory.database, directory.disk)


def _history_of(directory: RunDirectory) -> History | None:
    """The database, or None when it is damaged or gone.

    Raises:
        ConfigError: it can't be used now, but is not damaged: no room, no permission, another program holds it.
    """
    if not directory.database.exists():
        log.warning("the run's database is gone: the history of rounds begins anew")
        return None
    history: History | None = None
    try:
        history = History(directory.database, directory.disk)
        history.check()
        if history.last_commit() is not None:
            return history
        reason = "it holds no version"
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise ConfigError(f"{directory.database} can't be used: {error}; nothing was changed, try again") from error
        reason = str(error)
    if history is not None:
        history.close()
    log.warning("the run's database is damaged (%s): the history of rounds begins anew", reason)
    return None


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file is not what it should be, and not just that it can't be had now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # `History.check` names none
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _newest_whole(directory: RunDirectory, committed: Mapping[int, str]) -> ModelState:
    """The newest version whose file is what was committed.

    Args:
        directory: the run directory.
        committed: version to the SHA-256 of its file; empty when nobody knows.
    """
    for version in sorted(committed or directory.versions(), reverse=True):
        path = directory.version_path(version)
        # Old versions are not kept, which is no damage; the newest one should be there.
        if path.exists() or version == max(committed, default=0):
            try:
                model = directory.load(version)
            except DamagedVersion as error:
                log.warning("%s; going back to an older version", error)
                continue
            if version not in committed or sha256_of(path) == committed[version]:
                return model
            log.warning("%s does not have the SHA-256 it was committed with; going back to an older version", path)
    raise ConfigError(f"{directory.path}: no committed version is whole, so there is nothing to resume from")


def _forget_what_came_after(version: int, directory: RunDirectory, history: History) -> None:
    """Bring history and spool back to a version older than the last commit."""
    last = history.last_commit()
    directory.set_aside(version, last)
    if last is None or last == version:
        return
    log.warning("version %d is the newest that is whole, %d was committed: rounds after it are repeated", version, last)
    history.rewind(version)
    Spool(directory.spool).discard_after(version + 1)


def resolved(loaded: LoadedConfig, run_id: str) -> dict[str, Any]:
    """The configuration as plain data that loads again, from whatever folder."""
    resolved = loaded.config.model_dump(mode="json")
    resolved["run"]["name"] = run_id
    # Without the name, which is the key: the file is a configuration that loads again, for --resume and export.
    resolved["tasks"] = {name: spec.model_dump(mode="json", exclude={"name"}) for name, spec in loaded.specs.items()}
    encoder = resolved["model"].get("encoder")
    if isinstance(encoder, str) and (folder := loaded.base_dir / Path(encoder).expanduser()).is_dir():
        resolved["model"]["encoder"] = str(folder.resolve())
    if isinstance(encoder, dict) and (folder := loaded.base_dir / Path(encoder["tokenizer"]).expanduser()).is_dir():
        encoder["tokenizer"] = str(folder.resolve())
    return resolved


def require_same_run(loaded: LoadedConfig, kept: Path) -> str:
    """Refuse to resume with a configuration that makes another run of it: what would be ignored, or mix two runs.

    Args:
        loaded: the configuration to go on with.
        kept: the run directory's config.yaml.

    Returns:
        the run's id.

    Raises:
        ConfigError: naming the keys that differ.
    """
    before = resolve_config(read_yaml(kept), str(kept), kept.parent)
    run_id = before.config.run.name or kept.parent.name
    one, other = resolved(before, run_id), resolved(loaded, run_id)
    differ = [".".join(path) for path in _FIXED if reduce(getitem, path, one) != reduce(getitem, path, other)]
    if differ:
        raise ConfigError(
            f"{loaded.source}: {', '.join(differ)}: not what the run in {kept.parent} was begun with, and no run can "
            "change it on the way; leave --config out to go on with the run's own configuration, or start a new run"
        )
    return run_id
