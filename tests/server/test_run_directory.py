"""What survives the process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from common.plan import SharingPlan
from server.history import History
from server.model_state import ModelState
from server.run_directory import RunDirectory, load_version, sha256_of
from tests.server.tiny_run import BLUEPRINT, PLAN, state


def begun(path: Path) -> RunDirectory:
    """A directory that holds a run."""
    directory = RunDirectory(path)
    History(directory.database).close()
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    """A new run's directory, which is `tmp_path`."""
    made = RunDirectory(tmp_path)
    yield made
    made.close()


def test_a_new_run_makes_its_folders(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "deep" / "run")
    assert {path.name for path in directory.path.iterdir()} >= {"model", "spool", "family"}
    assert directory.versions() == []
    directory.close()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    begun(tmp_path).close()
    with pytest.raises(ConfigError, match="--resume"):
        RunDirectory(tmp_path)
    RunDirectory(tmp_path, resume=True).close()


def test_nothing_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume"):
        RunDirectory(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_second_server_is_refused(tmp_path: Path) -> None:
    first = begun(tmp_path)
    with pytest.raises(ConfigError, match="in use by another server"):
        RunDirectory(tmp_path, resume=True)
    first.close()
    RunDirectory(tmp_path, resume=True).close()


@pytest.mark.parametrize("plan", [PLAN, SharingPlan.separate(BLUEPRINT)], ids=["mtl", "per_task"])
def test_a_version_comes_back_as_it_was(directory: RunDirectory, plan: SharingPlan) -> None:
    model = state(plan, version=3)
    digest = directory.commit(model)
    assert digest == sha256_of(directory.version_path(3))
    assert [path.name for path in directory.models.iterdir()] == ["round-00003.safetensors"]
    back = directory.load(3)
    assert (back.version, back.plan) == (3, plan)
    for slot_id, value in model.values.items():
        assert torch.equal(back.values[slot_id], value)


def test_copies_that_share_memory_can_be_committed(directory: RunDirectory) -> None:
    """Version 0 of a plan with a copy per task."""
    plan = SharingPlan.separate(BLUEPRINT)
    initial = ModelState.initial(plan, {spec.name: torch.ones(spec.shape) for spec in BLUEPRINT.parameters})
    directory.commit(initial)
    assert directory.load(0).values.keys() == initial.values.keys()


def test_equal_models_have_equal_files(directory: RunDirectory) -> None:
    assert len({directory.commit(state(seed=1)) for _ in range(20)}) == 1
    assert directory.commit(state(seed=2)) != directory.commit(state(seed=1))


@pytest.mark.parametrize(("keep", "left"), [(1, [0, 5]), (3, [0, 3, 4, 5]), (9, [0, 1, 2, 3, 4, 5])])
def test_the_first_and_the_newest_versions_are_kept(directory: RunDirectory, keep: int, left: list[int]) -> None:
    for version in range(6):
        directory.commit(state(version=version))
        assert directory.versions()[-1] == version
        directory.prune(keep, version)
    assert directory.versions() == left


def test_the_best_versions_stay_and_take_no_place(directory: RunDirectory) -> None:
    for version in range(7):
        directory.commit(state(version=version))
    directory.prune(2, 6, also={2, 4, 6})
    assert directory.versions() == [0, 2, 4, 5, 6]


def test_versions_newer_than_the_committed_one_take_no_place(directory: RunDirectory) -> None:
    for version in (0, 1, 2, 7, 8, 9):
        directory.commit(state(version=version))
    directory.prune(1, 2)
    assert directory.versions() == [0, 2, 7, 8, 9]


def test_what_is_made_again_is_out_of_the_way(directory: RunDirectory) -> None:
    for version in range(5):
        directory.commit(state(version=version))
    directory.set_aside(2, committed=3)
    assert directory.versions() == [0, 1, 2]
    # The third was committed, so its file is damaged; the fourth never was.
    assert [path.name for path in directory.models.glob("*.damaged")] == ["round-00003.safetensors.damaged"]


@pytest.mark.parametrize("name", ["round-00001 (copy).safetensors", "round-1.safetensors", "notes.safetensors"])
def test_other_files_among_the_versions_are_left_alone(directory: RunDirectory, name: str) -> None:
    (directory.models / name).write_bytes(b"?")
    directory.commit(state(version=0))
    directory.prune(1, 0)
    assert directory.versions() == [0]
    assert (directory.models / name).exists()


def test_a_run_whose_database_is_gone_is_still_a_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_config({"run": {}})
    directory.commit(state(version=3))
    directory.close()
    with pytest.raises(ConfigError, match="--resume"):
        RunDirectory(tmp_path)
    again = RunDirectory(tmp_path, resume=True)
    assert again.holds_run
    again.close()


def test_a_crash_while_writing_leaves_the_last_version(directory: RunDirectory) -> None:
    directory.commit(state(version=1))
    (directory.models / "round-00002.tmp").write_bytes(b"half a mod")
    assert directory.versions() == [1]
    directory.commit(state(version=2))
    assert directory.versions() == [1, 2]


def test_a_torn_or_foreign_file_is_refused_by_name(directory: RunDirectory) -> None:
    directory.commit(state(version=1))
    path = directory.version_path(1)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"\x00" * 64):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"round-00001\.safetensors is not a committed version"):
            directory.load(1)
    with pytest.raises(ConfigError, match="is not a committed version"):
        directory.load(9)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"format": "pt"}, {"fedmtl": "{}"}, {"fedmtl": "[1]"}, {"fedmtl": "no json"}):
        save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(ConfigError, match="is not a committed version"):
            load_version(tmp_path / "x.safetensors")


def test_summary_and_configuration_are_replaced_whole(directory: RunDirectory, tmp_path: Path) -> None:
    for number in (1, 2):
        directory.write_summary({"rounds_completed": number})
        assert json.loads((tmp_path / "summary.json").read_text()) == {"rounds_completed": number}
    directory.write_config({"run": {"rounds": 3}})
    assert (tmp_path / "config.yaml").read_text() == "run:\n  rounds: 3\n"
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_flipped_bit_anywhere_in_a_version_is_found(directory: RunDirectory) -> None:
    """In a value by its checksum, in the description by its parser or by the plan's digest."""
    directory.commit(state(version=1))
    path = directory.version_path(1)
    whole = path.read_bytes()
    found = 0
    for position in range(8, len(whole), 97):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        try:
            back = directory.load(1)
        except ConfigError:
            found += 1
        else:  # white space of the header, or a character of it that says the same
            assert back.plan == PLAN
            assert all(torch.equal(back.values[slot], value) for slot, value in state(version=1).values.items())
    assert found > 0.9 * len(range(8, len(whole), 97))


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be used"):
        RunDirectory(tmp_path / "file" / "run")


def test_what_a_killed_start_left_is_begun_again_or_resumed(tmp_path: Path) -> None:
    """The configuration is there, the database is not: nothing can be lost."""
    started = RunDirectory(tmp_path)
    started.write_config({"run": {}})
    started.close()
    for resume in (False, True):
        again = RunDirectory(tmp_path, resume=resume)
        assert not again.holds_run
        again.close()
