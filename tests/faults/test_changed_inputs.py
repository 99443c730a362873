"""Inputs that someone changes while a merge runs: no output may mix two versions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from faults.nursery import Nursery
from faults.world import World, tree

SUFFIX = ".safetensors"
IN_PLACE = {
    "overwrite": "changed while it was in use",
    "append": "changed while it was in use",
    "touch": "changed while it was in use",
    "truncate": "changed while it was ",
}


def reference(nursery: Nursery, world: World, tmp_path: Path, name: str) -> dict[str, str]:
    out = tmp_path / "before" / name
    assert not nursery.run(world.scenario(out)).error[0]
    return tree(out)


@pytest.mark.parametrize("how", IN_PLACE)
@pytest.mark.parametrize("model", ["base", "two"])
@pytest.mark.parametrize("resume", [False, True], ids=["", "resume"])
def test_changed_in_place_after_half_of_the_windows(
    nursery: Nursery, own_world: World, tmp_path: Path, model: str, how: str, resume: bool
) -> None:
    name, path = f"out{SUFFIX}", own_world.directory / f"{model}{SUFFIX}"
    half = [3, "change", [how, str(path)]]
    out = tmp_path / "x" / name
    options = {"resume": resume}
    ending = nursery.run(own_world.scenario(out, options=options, at_window=half, block=512))
    kind, message, code = ending.error
    assert (kind, code) == ("CheckpointError", 2)
    assert message.startswith(f"{path}: ")
    assert "run the command again" in message
    if how != "truncate":
        assert IN_PLACE[how] in message
    assert not out.parent.exists()


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_shard_changed_after_the_last_window(
    nursery: Nursery, own_world: World, tmp_path: Path, how: str
) -> None:
    """Nothing is left to read, and still no one can say what was read."""
    out, shard = tmp_path / "x/out", own_world.directory / "one/model-00001-of-00002.safetensors"
    windows = nursery.run(own_world.scenario(tmp_path / "before/out")).result["windows"]
    last = [windows, "change", [how, str(shard)]]
    kind, message, _ = nursery.run(own_world.scenario(out, at_window=last)).error
    assert kind == "CheckpointError"
    assert message.startswith(f"{shard}: changed while it was in use, so the result would mix")
    assert not out.parent.exists()


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("how", ["replace", "remove"])
@pytest.mark.parametrize("when", [1, 3])
def test_a_new_file_of_that_name_is_not_read(
    nursery: Nursery, world: World, disk_path: Path, how: str, when: int, direct: bool
) -> None:
    """The old one is open: the output is that of the old one, whole."""
    shutil.copytree(world.directory, disk_path / "models")
    own_world = World(disk_path / "models")
    name = f"out{SUFFIX}"
    expected = reference(nursery, own_world, disk_path, name)
    for path in own_world.directory.glob(f"*{SUFFIX}"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    change = [when, "change", [how, str(own_world.directory / f"one{SUFFIX}")]]
    out = disk_path / "x" / name
    ending = nursery.run(own_world.scenario(out, at_window=change, direct=direct))
    assert not ending.error[0], ending
    assert tree(out) == expected


@pytest.mark.parametrize("how", [*IN_PLACE, "replace", "remove"])
def test_changed_between_planning_and_merging(
    nursery: Nursery, own_world: World, tmp_path: Path, how: str
) -> None:
    path = own_world.directory / f"one{SUFFIX}"
    out = tmp_path / "x" / f"out{SUFFIX}"
    kind, message, code = nursery.run(own_world.scenario(out, changed=[how, str(path)])).error
    assert (kind, code) == ("CheckpointError", 2)
    said = "cannot open for reading" if how == "remove" else "changed while it was in use"
    assert message.startswith(f"{path}: {said}")
    assert not out.parent.exists()


def test_an_input_that_is_only_read_is_no_change(
    nursery: Nursery, own_world: World, tmp_path: Path
) -> None:
    """Links to it and its permissions may change: the bytes are the same."""
    name, path = f"out{SUFFIX}", own_world.directory / f"one{SUFFIX}"
    expected = reference(nursery, own_world, tmp_path, name)
    go = tmp_path / "go"
    started = nursery.start(
        own_world.scenario(tmp_path / "x" / name, at_window=[2, "pause", str(go)])
    )
    path.with_name("other").hardlink_to(path)
    path.chmod(0o600)
    path.read_bytes()
    go.touch()
    assert not nursery.wait(started).error[0]
    assert tree(tmp_path / "x" / name) == expected
