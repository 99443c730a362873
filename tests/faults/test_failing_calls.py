"""System calls that fail, or do less than asked: by a library that is preloaded (shim.c)."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from faults.nursery import Nursery
from faults.world import World, make_world, tree

NAMES = ["out.safetensors", "out"]
EIO = errno.EIO


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models of 264 kB, which are not in the page cache."""
    return make_world(tmp_path_factory.mktemp("large"), scale=100)


def drop_cache(world: World) -> None:
    """Let the next reads come from the disk."""
    for path in world.directory.rglob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def fill_cache(world: World) -> None:
    for path in world.directory.rglob("*.safetensors"):
        path.read_bytes()


# ---- flushing


@pytest.mark.parametrize("force", [False, True], ids=["fresh", "forced"])
@pytest.mark.parametrize("name", NAMES)
def test_every_fdatasync_that_fails(
    shimmed: Nursery, world: World, tmp_path: Path, name: str, force: bool
) -> None:
    """One for each file. A flush that failed is never tried again: its data may be gone."""
    out = tmp_path / "x" / name
    old: dict[str, str] = {}
    if force:
        assert not shimmed.run(world.scenario(out, lams=(2,))).error[0]
        old = tree(out)
    options = {"force": force, "resume": True}
    for number in itertools.count(1):
        rules = f"fdatasync:{number}:{EIO}"
        ending = shimmed.run(world.scenario(out, options=options, faults=rules))
        if not ending.error[0]:
            break
        kind, message, code = ending.error
        assert (kind, code) == ("WriteError", 1)
        assert message.startswith(f"{out}: flushing the output failed: Input/output error; ")
        assert "nothing was left behind; check the disk" in message
        assert tree(out) == old
        assert ending.said.count("fault in fdatasync") == 1
        assert force or os.listdir(tmp_path) == []
        assert not force or len(os.listdir(tmp_path / "x")) == (2 if out.suffix else 1)
    # Weights and recipe; two shards, index, config, tokenizer, card and recipe.
    assert number - 1 == (2 if out.suffix else 7)
    assert tree(out) != old


@pytest.mark.parametrize("name", NAMES)
def test_every_fsync_that_fails(shimmed: Nursery, world: World, tmp_path: Path, name: str) -> None:
    """The staging directory's, then the parents', when the output is in place already."""
    wanted = tmp_path / "whole" / name
    assert not shimmed.run(world.scenario(wanted)).error[0]
    for number in itertools.count(1):
        out = tmp_path / f"x{number}" / name
        ending = shimmed.run(world.scenario(out, faults=f"fsync:{number}:{EIO}"))
        if not ending.error[0]:
            break
        kind, message, code = ending.error
        assert (kind, code) == ("WriteError", 1)
        if number == 1:
            assert "flushing the output failed: Input/output error; nothing was left" in message
            assert not out.parent.exists()
        else:
            assert f"{out}: is in place and whole, but flushing" in message
            assert "a power cut now could undo the rename" in message
            assert tree(out) == tree(wanted)
            assert len(os.listdir(out.parent)) == len(os.listdir(wanted.parent))
    # The staging directory, the new parent, and the directory which that was made in.
    assert number - 1 == 3


def test_a_failing_flush_of_the_second_output(
    shimmed: Nursery, world: World, tmp_path: Path
) -> None:
    """It is said which output failed. All are flushed before the first is put in place."""
    outs = [tmp_path / "x" / f"{n}.safetensors" for n in (1, 2)]
    ending = shimmed.run(world.scenario(*outs, lams=(1, 2), faults=f"fdatasync:3:{EIO}"))
    kind, message, _ = ending.error
    assert kind == "WriteError"
    assert message.startswith(f"{outs[1]}: flushing the output failed")
    assert os.listdir(tmp_path) == []


# ---- what must not change a byte

HARMLESS = {
    "short writes": "pwrite:0:short",
    "interrupted writes": "pwrite:2:4 pwrite:3:4 pwrite:7:4",
    "no direct reads or writes": f"direct_open:0:{errno.EINVAL}",
    "no direct reads or writes, otherwise said": f"direct_open:0:{errno.EOPNOTSUPP}",
    "direct writes refused midway": f"direct_pwrite:5:{errno.EINVAL}",
    "short direct writes": "direct_pwrite:0:short",
    "direct reads refused midway": f"direct_read:5:{errno.EINVAL}",
    "a direct read that fails": f"direct_read:2:{EIO} direct_read:5:{EIO}",
    "short direct reads": "direct_read:0:short",
    "short reads": "read:0:short",
    "interrupted reads": "read:9:4 read:10:4 read:30:4",
    "an old kernel": f"cachestat:0:{errno.ENOSYS}",
    "a sandbox": f"cachestat:0:{errno.EPERM}",
    "no reserving": f"fallocate:0:{errno.EOPNOTSUPP}",
    "reserving is interrupted": "fallocate:1:4",
    "no reserving on an old kernel": f"fallocate:0:{errno.ENOSYS}",
}


@pytest.mark.parametrize("what", HARMLESS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_in_spite_of(
    shimmed: Nursery, large: World, disk_path: Path, goes_direct: bool, name: str, what: str
) -> None:
    """From the disk, then from the page cache, where the native code reads."""
    rules = HARMLESS[what]
    if rules.startswith("direct") and not goes_direct:
        pytest.skip("no direct I/O on this disk")
    plain = shimmed.run(large.scenario(disk_path / "whole" / name, block=8192))
    assert "fault" not in plain.said
    for cold in (True, False):
        out = disk_path / f"{cold}" / name
        if cold:
            drop_cache(large)
        else:
            fill_cache(large)
        scenario = large.scenario(out, block=8192, direct=True, faults=rules, threads=3)
        ending = shimmed.run(scenario)
        assert not ending.error[0], ending
        if cold or not rules.startswith(("direct_read", "cachestat")):
            assert f"fault in {rules.split(':')[0]}" in ending.said
        assert tree(out) == tree(disk_path / "whole" / name)


# ---- what must


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_a_write_that_fails(
    shimmed: Nursery, large: World, disk_path: Path, goes_direct: bool, direct: bool
) -> None:
    if direct and not goes_direct:
        pytest.skip("no direct I/O on this disk")
    out = disk_path / "x/out"
    call = "direct_pwrite" if direct else "pwrite"
    rules = f"{call}:9:{EIO}"
    ending = shimmed.run(large.scenario(out, block=8192, direct=direct, faults=rules, threads=3))
    kind, message, code = ending.error
    assert (kind, code) == ("WriteError", 1)
    assert message.startswith(f"{out}: writing at byte ")
    assert "failed: Input/output error; nothing was left behind; check the disk" in message
    assert os.listdir(disk_path) == []


def test_a_read_that_fails(shimmed: Nursery, large: World, disk_path: Path) -> None:
    """The bad sector stays bad, past the page cache and through it."""
    drop_cache(large)
    # The first reads are those of headers and fingerprints.
    rules = " ".join(f"read:{number}:{EIO}" for number in range(60, 70))
    out = disk_path / "y/out"
    ending = shimmed.run({**large.scenario(out, block=8192, direct=True), "faults": rules})
    kind, message, code = ending.error
    assert (kind, code) == ("AvopsError", 1)
    assert f"{large.directory}" in message
    assert "failed: Input/output error; check the disk, then run the command again" in message
    assert not out.parent.exists()
