"""Small models, a nursery of processes to kill, and a shim that makes system calls fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from avops.disk.residency import cached_share
from faults.nursery import Nursery
from faults.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Read-only models of 3 kB."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(world: World, tmp_path: Path) -> World:
    """Models that the test may change."""
    shutil.copytree(world.directory, tmp_path / "models")
    return World(tmp_path / "models")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Children without faults in their system calls."""
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def shimmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Children whose system calls fail as the scenario's ``faults`` say."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler for the shim")
    directory = tmp_path_factory.mktemp("shim")
    library = directory / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(Path(__file__).parent / "shim.c"), "-ldl"], check=True)
    found = Nursery(directory, LD_PRELOAD=str(library))
    yield found
    found.close()


@pytest.fixture
def disk_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory on a disk, which can be read and written past the page cache."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture
def goes_direct(disk_path: Path) -> bool:
    """Whether files there can leave the page cache, and be read and written past it."""
    path = disk_path / "probe"
    path.write_bytes(bytes(1 << 16))
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        return False
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return cached_share(fd, 0, 1 << 16) == 0
    finally:
        os.close(fd)
        path.unlink()


@pytest.fixture
def tmp_path(disk_path: Path) -> Iterator[Path]:
    """An empty directory, in memory where the system has such a place: a kill loses no pages."""
    if not os.access("/dev/shm", os.W_OK):
        yield disk_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as found:
        yield Path(found)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, if this user may mount one."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small tmpfs")
    yield where
    subprocess.run(["umount", str(where)], check=True)
