"""How a run begins, and what it goes on from: the newest version that is whole, whatever is damaged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common import failpoints
from common.errors import ConfigError
from common.families.saved import read_family
from server.config import LoadedConfig, load_config
from server.history import History
from server.model_state import ModelState
from server.run_directory import RunDirectory, load_version, sha256_of
from server.start import Start, begin, go_on, require_same_run, resolved
from tests.e2e.configs import small

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_goes_on_with_its_own_configuration_and_other_keys_of_the_process(path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "config.yaml"
    kept.write_text(yaml.safe_dump(resolved(load_config(path), "some-run")))
    assert require_same_run(load_config(path), kept) == "some-run"
    require_same_run(load_config(path, ["run.rounds=99", "server.port=0", "federation.min_clients=1"]), kept)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("run.seed=12345", "run.seed"),
        ("federation.mode=per_task", "federation.mode"),
        ("federation.resident=[norms]", "federation.resident"),
        ("federation.correction=fednova", "federation.correction"),
        ("model.dropout=0.5", "model"),
        ("tasks.sst2.data.train=7", "tasks"),
    ],
)
def test_a_configuration_that_makes_another_run_is_refused_by_key(change: str, key: str, tmp_path: Path) -> None:
    demo, kept = next(path for path in CONFIGS if path.stem == "demo"), tmp_path / "config.yaml"
    kept.write_text(yaml.safe_dump(resolved(load_config(demo), "some-run")))
    with pytest.raises(ConfigError, match=rf"demo.yaml: {key}: not what the run"):
        require_same_run(load_config(demo, [change]), kept)


# --- a run of three rounds, its process over


def loaded(folder: Path, **sections: Any) -> LoadedConfig:  # noqa: ANN401  # sections of a configuration
    """A small configuration, as read from a file in the folder."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(small(rows=8, run={"rounds": 3}, **sections)))
    return load_config(path)


def advance(directory: RunDirectory, model: ModelState, history: History, number: int) -> None:
    """Make, commit and record a version as the server does."""
    model.advance(lambda slot, value: value + number if slot.dtype == "float32" else value)
    sha256 = directory.commit(model)
    history.record_commit(model.version, sha256, model.plan.to_dict(), model.plan.digest, 0.1)
    history.record_update(number, "p", "aa", 1, {})


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose third and last version is committed; `small.yaml` lies in it. To be copied."""
    folder = tmp_path_factory.mktemp("finished")
    directory = RunDirectory(folder / "run")
    start = begin(loaded(folder), directory, "the-run")
    for number in (1, 2, 3):
        advance(directory, start.model, start.history, number)
    start.history.set("finished", 3)
    start.history.close()
    directory.close()
    return folder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run directory of its own for each test, not yet resumed."""
    shutil.copytree(finished_run, tmp_path / "copy")
    return tmp_path / "copy" / "run"


@contextmanager
def resumed(run: Path, *overrides: str) -> Iterator[Start]:
    """What a server that is told to resume begins with."""
    directory = RunDirectory(run, resume=True)
    assert directory.holds_run
    try:
        start = go_on(load_config(run / "config.yaml", overrides), directory)
        try:
            yield start
        finally:
            start.history.close()
    finally:
        directory.close()


def version_path(run: Path, version: int) -> Path:
    return run / "model" / f"round-{version:05d}.safetensors"


def assert_version(start: Start, run: Path, version: int) -> None:
    """The start goes on from this version, whole."""
    assert start.model.version == version
    whole = load_version(version_path(run, version))
    assert whole.plan == start.model.plan
    assert all(torch.equal(start.model.values[slot], value) for slot, value in whole.values.items())


def test_a_new_run_is_whole_before_it_has_its_name(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    start = begin(loaded(tmp_path), directory, "the-run")
    assert (start.run_id, start.resumed, start.finished, start.model.version) == ("the-run", False, False, 0)
    assert start.history.get("run_id") == "the-run"
    commit = start.history.commit_of(0)
    assert commit is not None
    assert commit["sha256"] == sha256_of(directory.version_path(0))
    assert [row["digest"] for row in start.history.plans()] == [start.model.plan.digest]
    assert read_family(directory.family)[0] == start.family.describe()
    assert yaml.safe_load(directory.config.read_text())["run"]["name"] == "the-run"
    assert sorted(path.name for path in directory.path.glob("run.db*")) == ["run.db", "run.db-shm", "run.db-wal"]
    start.history.close()
    directory.close()


def test_settings_that_choose_nothing_of_the_model_are_refused_at_the_start(tmp_path: Path) -> None:
    wrong = {"groups": [{"match": "layers:7", "learning_rate": 0.5}]}
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"small\.yaml: training\.groups\.0\.match: 'layers:7' matches no parameter"):
        begin(loaded(tmp_path, training=wrong), directory, "the-run")
    assert not directory.holds_run
    directory.close()


def test_settings_that_choose_nothing_of_the_model_are_refused_when_a_run_is_resumed(run: Path) -> None:
    wrong = "training_overrides=[{clients: [p], set: {unfreeze: [{epoch: 0, open: adapters}]}}]"
    with (
        pytest.raises(ConfigError, match=r"training_overrides\.0\.set\.unfreeze\.0\.open: 'adapters'"),
        resumed(run, wrong),
    ):
        pass
    with resumed(run) as start:
        assert_version(start, run, 3)


def test_equal_configurations_begin_with_equal_models(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "other"):
        directory = RunDirectory(tmp_path / name)
        start = begin(loaded(tmp_path), directory, name)
        hashes.add(sha256_of(directory.version_path(0)))
        start.history.close()
        directory.close()
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "point", ["start.config_written", "start.family_written", "commit.renamed", "start.database_written"]
)
def test_a_start_that_was_cut_off_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Wherever it was, there is no run yet, and what is left over is in nobody's way."""
    monkeypatch.setenv(failpoints.WHILE_VARIABLE, str(tmp_path))
    given = loaded(tmp_path)
    directory = RunDirectory(tmp_path / "run")
    failpoints.arm(f"{point}=enospc")
    try:
        with pytest.raises(OSError, match="No space"):
            begin(given, directory, "the-run")
    finally:
        failpoints.arm("")
        directory.close()
    again = RunDirectory(tmp_path / "run", resume=True)
    assert not again.holds_run
    start = begin(given, again, "the-run")
    assert (start.model.version, start.history.last_commit()) == (0, 0)
    start.history.close()
    again.close()


def test_a_run_goes_on_from_its_newest_version(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with resumed(run, "run.rounds=9") as start:
        assert_version(start, run, 3)
        assert (start.run_id, start.resumed, start.finished) == ("the-run", True, False)
        assert start.history.last_commit() == 3
        assert start.family.blueprint().tasks == load_version(version_path(run, 3)).plan.blueprint.tasks
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_run_is_finished_when_it_was_and_nobody_wants_more(run: Path) -> None:
    with resumed(run) as start:
        assert start.finished
        start.history.set("finished", None)  # all versions are there, and the last evaluation is not
    with resumed(run) as start:
        assert not start.finished


def test_versions_that_were_pruned_are_no_damage(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    version_path(run, 1).unlink()
    version_path(run, 2).unlink()
    with resumed(run) as start:
        assert_version(start, run, 3)
        assert start.finished
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def missing(path: Path) -> None:
    path.unlink()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def replaced(path: Path) -> None:
    """By a whole version that is another: only the SHA-256 in the database knows."""
    other = load_version(path)
    other.advance(lambda _, value: value + 1 if value.is_floating_point() else value)
    other.version -= 1
    folder = RunDirectory(path.parent.parent.parent / "other")
    folder.commit(other)
    shutil.copy(folder.version_path(other.version), path)
    folder.close()


@pytest.mark.parametrize("damage", [torn, missing, flipped, replaced])
def test_a_damaged_newest_version_is_made_again_from_the_one_before(
    run: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    for number in (3, 4):
        (run / "spool" / f"round-{number:05d}").mkdir()
    damage(version_path(run, 3))
    with resumed(run) as start:
        assert_version(start, run, 2)
        assert not start.finished, "its last round is to be done again"
        assert start.history.last_commit() == 2
        assert [row["round"] for row in start.history.updates()] == [1, 2]
    assert "round-00003.safetensors" in caplog.text
    assert "going back to an older version" in caplog.text
    assert "version 2 is the newest that is whole, 3 was committed: rounds after it are repeated" in caplog.text
    assert [path.name for path in (run / "spool").iterdir()] == ["round-00003"], "these make it again"
    with resumed(run) as start:
        assert_version(start, run, 2)


def test_several_damaged_versions_go_back_as_far_as_it_takes(run: Path) -> None:
    torn(version_path(run, 3))
    replaced(version_path(run, 2))
    version_path(run, 1).unlink()
    with resumed(run) as start:
        assert_version(start, run, 0)
        assert start.history.last_commit() == 0


def test_a_version_that_was_never_recorded_is_not_gone_on_from(run: Path) -> None:
    """The process was killed between the file and its row: the updates are still there to make it again."""
    with sqlite3.connect(run / "run.db") as database:
        database.execute("DELETE FROM commits WHERE version = 3")
    database.close()
    with resumed(run) as start:
        assert_version(start, run, 2)


@pytest.mark.parametrize("kind", ["no database", "torn", "a page", "empty", "without a version"])
def test_a_damaged_database_is_set_aside_and_begun_anew_from_the_newest_version(
    run: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    database = run / "run.db"
    if kind == "no database":
        database.write_bytes(b"not SQLite at all " * 500)
    elif kind == "torn":
        with database.open("r+b") as file:
            file.truncate(database.stat().st_size // 2)
    elif kind == "a page":
        content = bytearray(database.read_bytes())
        page = int.from_bytes(content[16:18], "big")
        # The last table's: opening the file and reading the commits notice nothing.
        content[-page : 64 - page] = b"\xff" * 64
        database.write_bytes(content)
    elif kind == "empty":
        database.write_bytes(b"")
    else:
        with sqlite3.connect(database) as other:
            other.execute("DELETE FROM commits")
        other.close()
    before = database.read_bytes()
    with resumed(run, "run.rounds=9") as start:
        assert_version(start, run, 3)
        assert start.run_id == "the-run", "from config.yaml"
        assert start.history.get("run_id") == "the-run"
        assert start.history.last_commit() == 3
        assert (start.resumed, start.finished) == (True, False)
        commit = start.history.commit_of(3)
        assert commit is not None
        assert commit["sha256"] == sha256_of(version_path(run, 3))
    [aside] = [path for path in run.glob("run.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    assert kind == "empty" or aside.read_bytes()[:4096] == before[:4096], "it is kept for who may want to read it"
    assert "the run's database is damaged" in caplog.text
    assert aside.name in caplog.text
    with resumed(run) as start:
        assert_version(start, run, 3)


def test_with_a_damaged_database_a_damaged_version_is_still_found_by_its_checksums(run: Path) -> None:
    (run / "run.db").write_bytes(b"not SQLite at all " * 500)
    flipped(version_path(run, 3))
    with resumed(run) as start:
        assert_version(start, run, 2)


def test_when_no_version_is_whole_there_is_nothing_to_resume_from(run: Path) -> None:
    for version in range(4):
        torn(version_path(run, version))
    with pytest.raises(ConfigError, match="no committed version is whole, so there is nothing"), resumed(run):
        pass
    assert (run / "run.db").exists()


def test_a_damaged_family_is_refused_by_name(run: Path) -> None:
    (run / "family" / "family.json").write_text("{")
    with pytest.raises(ConfigError, match="holds no readable model family"), resumed(run):
        pass


def test_a_database_of_another_version_is_not_taken_for_a_damaged_one(run: Path) -> None:
    with sqlite3.connect(run / "run.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="another version of fedmtl"), resumed(run):
        pass
    assert list(run.glob("run.db.damaged*")) == []


def test_what_a_process_may_change_is_kept_for_the_next(run: Path) -> None:
    with resumed(run, "run.rounds=9", "federation.min_clients=2"):
        pass
    kept = load_config(run / "config.yaml").config
    assert (kept.run.rounds, kept.federation.min_clients, kept.run.name) == (9, 2, "the-run")


def test_paths_relative_to_the_configuration_are_kept_absolute(tmp_path: Path) -> None:
    """A run directory is resumed from anywhere."""
    folder = tmp_path / "models" / "encoder"
    folder.mkdir(parents=True)
    model = {"family": "transformer", "max_length": 32}
    given = small(rows=8)
    for encoder, keys in [
        ("models/encoder", ("model", "encoder")),
        (given["model"]["encoder"] | {"tokenizer": "models/encoder"}, ("model", "encoder", "tokenizer")),
    ]:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(given | {"model": model | {"encoder": encoder}}))
        found: Any = resolved(load_config(path), "the-run")
        for key in keys:
            found = found[key]
        assert found == str(folder.resolve())


def test_names_that_are_no_folder_stay_names(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump(small(rows=8) | {"model": {"family": "transformer", "encoder": "bert-base-uncased"}})
    )
    assert resolved(load_config(path), "the-run")["model"]["encoder"] == "bert-base-uncased"
    assert resolved(loaded(tmp_path), "the-run")["model"]["encoder"]["tokenizer"] == "synthetic-words"


def test_what_is_frozen_can_be_changed_when_a_run_goes_on(run: Path) -> None:
    def frozen_groups(start: Start) -> set[str]:
        return {slot.spec.group for slot in start.model.plan.slots if slot.frozen}

    with resumed(run, "run.rounds=5", "freezing.freeze=[everything]") as start:
        assert frozen_groups(start) == {"embeddings", "layer.0", "head"}
        assert start.course.outlook(3, start.model.plan).end.endswith("everything is frozen")
        assert start.finished
    for change in (["freezing.freeze=[backbone]"], []):  # changed once, and a server that was killed before it went on
        with resumed(run, *change) as start:
            assert frozen_groups(start) == {"embeddings", "layer.0"}
            assert start.course.plan_of_round(4) == start.model.plan
            assert not start.course.outlook(3, start.model.plan).end
            assert not start.finished
            assert [row["plan"] for row in start.history.commits()][-1] == start.model.plan.digest


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"federation": {"resident": ["layers:9"]}}, "federation.resident: 'layers:9' matches no parameter"),
        ({"model": {"lora": {"targets": ["nothing"]}}}, "model.lora.targets: 'nothing' is no linear layer"),
    ],
)
def test_what_the_model_does_not_have_is_told_by_file_and_key(section: Any, told: str, tmp_path: Path) -> None:  # noqa: ANN401
    if "lora" in section.get("model", {}):
        pytest.importorskip("peft")
    directory = RunDirectory(tmp_path / "run")
    try:
        with pytest.raises(ConfigError, match=rf"small\.yaml: {told}"):
            begin(loaded(tmp_path, **section), directory, "the-run")
    finally:
        directory.close()
