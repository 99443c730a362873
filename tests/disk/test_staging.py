"""Publishing: whole or not at all, with real faults."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avops.disk import RECIPE_NAME, Staging, open_checkpoint, write_checkpoint, write_file
from avops.disk.publish import place
from avops.disk.staging import check_space
from avops.dtypes import F32
from avops.errors import OutputError, WriteError


def publish(target: Path, data: bytes = b"new", **options: object) -> None:
    staging = Staging(target, directory=False, **options)  # type: ignore[arg-type]
    staging.check(len(data))
    with staging:
        staging.add(target.name, data)
        staging.commit()


def publish_directory(target: Path, names: dict[str, bytes], **options: object) -> None:
    staging = Staging(target, directory=True, **options)  # type: ignore[arg-type]
    staging.check(0)
    with staging:
        for name, data in names.items():
            staging.add(name, data)
        staging.commit()


def test_a_file_appears_whole(tmp_path: Path) -> None:
    publish(tmp_path / "deep/er/x.bin")
    assert (tmp_path / "deep/er/x.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path / "deep/er") == ["x.bin"]


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        publish(tmp_path / "x.bin")
    finally:
        os.umask(mask)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o644


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "new/er/x.bin", directory=False)
    with pytest.raises(RuntimeError), staging:
        staging.add("x.bin", b"data")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_an_existing_output_is_refused_then_forced(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"x.bin: already exists; .* --force"):
        publish(target)
    assert target.read_bytes() == b"old"
    publish(target, force=True)
    assert target.read_bytes() == b"new"


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    staging = Staging(target, directory=False)
    with pytest.raises(OutputError, match="already exists"), staging:
        staging.add("x.bin", b"new")
        target.write_bytes(b"theirs")
        staging.commit()
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_directory_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    staging = Staging(target, directory=True)
    with pytest.raises(OutputError, match="already exists"), staging:
        staging.add("x.bin", b"new")
        target.mkdir()
        (target / "theirs").write_bytes(b"theirs")
        staging.commit()
    assert os.listdir(target) == ["theirs"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_users_add_to_a_replaced_directory_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    publish_directory(target, {RECIPE_NAME: recipe("old.bin"), "old.bin": b"old"})
    staging = Staging(target, directory=True, force=True)
    staging.check(0)
    with pytest.raises(OutputError, match="replaces only what avops wrote, and 'mine'"), staging:
        staging.add("x.bin", b"new")
        (target / "mine").write_bytes(b"mine")
        staging.commit()
    assert sorted(os.listdir(target)) == [RECIPE_NAME, "mine", "old.bin"]


def recipe(*names: str) -> bytes:
    """A recipe file that lists ``names``."""
    return json.dumps({"files": names}).encode()


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_force_replaces_only_what_avops_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("avops.disk.staging.exchange", lambda one, other: False)
    target = tmp_path / "out"
    publish_directory(target, {RECIPE_NAME: recipe("old.bin"), "old.bin": b"old"})
    with pytest.raises(OutputError, match="already exists"):
        publish_directory(target, {RECIPE_NAME: recipe()})
    new = {RECIPE_NAME: recipe("new.bin"), "new.bin": b"new"}
    publish_directory(target, new, force=True)
    assert sorted(os.listdir(target)) == [RECIPE_NAME, "new.bin"]
    assert os.listdir(tmp_path) == ["out"]

    (target / "notes").mkdir()
    (target / "notes/eval.txt").write_text("mine")
    with pytest.raises(OutputError, match="replaces only what avops wrote, and 'notes' in it"):
        publish_directory(target, new, force=True)
    assert (target / "notes/eval.txt").exists()


def test_force_spares_directories_of_others(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    for text in (None, "{}", "[]", '{"files": 3}', "no json"):
        if text is not None:
            (precious / RECIPE_NAME).write_text(text)
        with pytest.raises(OutputError, match="replaces only what avops wrote"):
            publish_directory(precious, {RECIPE_NAME: b"{}"}, force=True)
    assert (precious / "thesis.tex").exists()


def test_an_interrupted_swap_puts_the_old_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avops.disk.staging.exchange", lambda one, other: False)
    target = tmp_path / "out"
    publish_directory(target, {RECIPE_NAME: recipe("old.bin"), "old.bin": b"old"})
    real = Path.rename

    def rename(self: Path, other: Path) -> Path:
        if "-partial-" in str(self):
            raise KeyboardInterrupt
        return real(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        publish_directory(target, {RECIPE_NAME: recipe()}, force=True)
    monkeypatch.undo()
    assert sorted(os.listdir(target)) == [RECIPE_NAME, "old.bin"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_old_copy_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    publish_directory(target, {RECIPE_NAME: recipe("old.bin"), "old.bin": b"old"})
    staging = Staging(target, directory=True, force=True)
    with staging:
        staging.add("new.bin", b"new")
        monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
        staging.commit()
    assert os.listdir(target) == ["new.bin"]
    assert "could not be removed whole" in staging.notes[0]
    assert Path(staging.notes[0].split("remove ")[-1]).is_dir()


def publish_pair(target: Path, data: bytes, **options: object) -> None:
    staging = Staging(target, directory=False, companions=["x.json"], **options)  # type: ignore[arg-type]
    staging.check(len(data))
    with staging:
        staging.add("x.json", b"recipe of " + data)
        staging.add(target.name, data)
        staging.commit()


def test_companions_are_not_overwritten_either(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    (tmp_path / "x.json").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"x.json: already exists"):
        publish_pair(target, b"new")
    assert (tmp_path / "x.json").read_bytes() == b"precious"
    assert not target.exists()
    publish_pair(target, b"new", force=True)
    assert (tmp_path / "x.json").read_bytes() == b"recipe of new"


@pytest.mark.parametrize("first", ["x.bin", "x.json"])
def test_a_run_that_loses_the_race_changes_nothing(tmp_path: Path, first: str) -> None:
    staging = Staging(tmp_path / "x.bin", directory=False, companions=["x.json"])
    staging.check(1)
    with pytest.raises(OutputError, match=f"{first}: already exists"), staging:
        staging.add("x.json", b"mine")
        staging.add("x.bin", b"mine")
        (tmp_path / first).write_bytes(b"theirs")
        staging.commit()
    assert os.listdir(tmp_path) == [first]
    assert (tmp_path / first).read_bytes() == b"theirs"


def test_what_another_run_published_meanwhile_is_kept_whole(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "x.bin", directory=False, companions=["x.json"])
    staging.check(1)
    with pytest.raises(OutputError, match=r"x.json: already exists"), staging:
        staging.add("x.json", b"mine")
        staging.add("x.bin", b"mine")
        (tmp_path / "x.json").write_bytes(recipe("x.bin"))
        (tmp_path / "x.bin").write_bytes(b"theirs")
        staging.commit()
    assert (tmp_path / "x.json").read_bytes() == recipe("x.bin")
    assert (tmp_path / "x.bin").read_bytes() == b"theirs"


@pytest.mark.parametrize("resume", [False, True])
def test_an_interrupt_right_after_the_rename_leaves_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    def interrupted(staged: Path, path: Path, *, force: bool) -> bool:
        done = place(staged, path, force=force)
        if path.name == "x.bin":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr("avops.disk.staging.place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_pair(tmp_path / "x.bin", b"new", plan_id="p", resume=resume)
    assert (tmp_path / "x.bin").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["x.bin", "x.json"]


def test_leftovers_of_killed_runs_are_found(tmp_path: Path) -> None:
    (tmp_path / ".x.bin.avops-partial-12-ab").mkdir()
    (tmp_path / ".y.bin.avops-partial-12-ab").mkdir()
    with Staging(tmp_path / "x.bin", directory=False) as staging:
        assert [path.name for path in staging.leftovers()] == [".x.bin.avops-partial-12-ab"]


def test_an_empty_directory_may_become_the_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish_directory(tmp_path / "out", {"a": b"1"})
    assert os.listdir(tmp_path / "out") == ["a"]


def test_kinds_are_not_confused(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="exists and is a directory, but the output is a file"):
        publish(tmp_path / "dir", force=True)
    with pytest.raises(OutputError, match="exists and is a file, but the output is a directory"):
        publish_directory(tmp_path / "file", {}, force=True)


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    base = tmp_path / "m/base.bin"
    base.parent.mkdir()
    base.write_bytes(b"weights")
    hard, soft = tmp_path / "hard.bin", tmp_path / "soft.bin"
    hard.hardlink_to(base)
    soft.symlink_to(base)
    for target in (base, hard, soft):
        with pytest.raises(OutputError, match="which is never overwritten"):
            publish(target, force=True, inputs=[base])
    with pytest.raises(OutputError, match="is or holds the input"):
        publish_directory(base.parent, {}, force=True, inputs=[base])
    # A hub snapshot: the shard that is read lies elsewhere, behind a link.
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "base.bin").symlink_to(base)
    (snapshot / RECIPE_NAME).write_bytes(recipe("base.bin"))
    with pytest.raises(OutputError, match="is or holds the input"):
        publish_directory(snapshot, {}, force=True, inputs=[snapshot / "base.bin"])
    with pytest.raises(OutputError, match="is or holds the input"):
        publish_directory(base.parent, {}, force=True, inputs=[snapshot / "base.bin"])
    assert base.read_bytes() == b"weights"


def test_a_symlink_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    link.symlink_to(real)
    publish(link, force=True)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_too_large_for_the_disk(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "x.bin", directory=False)
    with pytest.raises(OutputError, match=r"needs 1,000,000,000,000,000,000 bytes, but .* free"):
        staging.check(10**18)


def test_all_outputs_of_a_disk_must_fit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what a killed run has there, in the space that users may take: 10 blocks of 10."""
    disk = SimpleNamespace(f_bavail=10, f_bfree=12, f_frsize=10, f_bsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)

    def outputs(*held: int) -> Any:
        return [SimpleNamespace(target="x", holder=tmp_path, held=nbytes) for nbytes in held]

    check_space(outputs(0, 0), 50)
    check_space(outputs(20, 0), 60)
    with pytest.raises(OutputError, match="x: needs 110 bytes with 1 more outputs, but .* has 100"):
        check_space(outputs(0, 0), 55)


def test_a_file_size_limit_midway(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is a real fault that needs no privileges: the kernel refuses the bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WriteError, match=r"nothing was left behind; .*limits file sizes"):
            publish(tmp_path / "x.bin", bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, if this user may mount one."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small tmpfs")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="free some space"):
        publish(small_disk / "x.bin", bytes(2 << 20))
    staging = Staging(small_disk / "x.bin", directory=False)
    staging.check(1000)
    with pytest.raises(WriteError, match=r"No space left.*free some space"), staging:
        staging.create("x.bin", 2 << 20)
    assert os.listdir(small_disk) == []


def test_a_failing_write_and_a_failing_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("pwrite", "fdatasync", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(WriteError, match=r"failed: Input/output error; nothing was left"):
                publish(tmp_path / "x.bin")
        assert os.listdir(tmp_path) in ([], ["x.bin"])
        # Only the last flush, of the parent, comes after the file is in place: it is whole then.
        if (tmp_path / "x.bin").exists():
            assert name == "fsync"
            (tmp_path / "x.bin").unlink()


def test_the_rename_is_flushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("avops.disk.staging.sync_directory", flushed.append)
    publish(tmp_path / "deep/er/x.bin")
    assert {tmp_path / "deep/er", tmp_path / "deep", tmp_path} <= set(flushed)

    def fail(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("avops.disk.staging.sync_directory", fail)
    with pytest.raises(WriteError, match=r"x.bin: is in place and whole, but flushing .* failed"):
        publish(tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == b"new"


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    write_file(tmp_path / "x.bin", bytes(range(200)))
    assert (tmp_path / "x.bin").read_bytes() == bytes(range(200))


def test_write_checkpoint_is_read_by_the_package(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tensors = {
        "a": (F32, np.arange(6, dtype="<f4").reshape(2, 3)),
        "s": (F32, np.array(2.5, dtype="<f4")),
        "e": (F32, np.empty((0, 3), dtype="<f4")),
    }
    write_checkpoint(tmp_path / "x.safetensors", tensors, {"who": "me"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert {name: array.tolist() for name, array in loaded.items()} == {
        name: array.tolist() for name, (_, array) in tensors.items()
    }
    assert open_checkpoint(tmp_path / "x.safetensors").shards[0].metadata == {
        "format": "pt",
        "who": "me",
    }
    with pytest.raises(OutputError, match="already exists"):
        write_checkpoint(tmp_path / "x.safetensors", tensors)
    with pytest.raises(TypeError, match="a: float64 array, expected <f4"):
        write_checkpoint(tmp_path / "y.safetensors", {"a": (F32, np.zeros(2))})
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("directory", [True, False])
def test_names_that_the_file_system_cannot_hold(tmp_path: Path, directory: bool) -> None:
    """The staged output has a longer name; the longest that is accepted can be written."""
    most = os.pathconf(tmp_path, "PC_NAME_MAX")

    def staging(length: int) -> Staging:
        return Staging(tmp_path / ("n" * length), directory=directory, companions=["c"])

    fits = max(n for n in range(most + 1) if not _refused(staging(n)))
    assert fits < most
    with staging(fits) as writing:
        writing.add("n" * fits if not directory else "file", b"")
        writing.add("c", b"")
        writing.commit()
    with pytest.raises(OutputError, match=f"its name has {most} bytes, .* at most {fits}; choose"):
        staging(most).check(0)
    with pytest.raises(OutputError, match=f"has {most + 9} bytes, .* at most {fits}; choose"):
        staging(most + 9).check(0)
    deep = Staging(tmp_path / ("d" * (most + 1)) / "out", directory=directory)
    with pytest.raises(OutputError, match=f"a directory's name has {most + 1} bytes, .* {most};"):
        deep.check(0)
    long = Staging(tmp_path / "out", directory=directory, companions=["c" * (most + 1)])
    with pytest.raises(OutputError, match="files beside it have longer ones"):
        long.check(0)


def _refused(staging: Staging) -> bool:
    try:
        staging.check(0)
    except OutputError as error:
        return "its name has" in str(error)
    return False
