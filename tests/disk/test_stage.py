"""Staging directories: who may take up what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from avops.disk.journal import JOURNAL
from avops.disk.stage import Stage


def left(target: Path, plan: str = "p", **files: bytes) -> Path:
    """A staging directory as a killed run leaves it."""
    stage = Stage(target, plan)
    stage.create()
    for name, data in files.items():
        (stage.files / name).write_bytes(data)
    assert stage.journal is not None
    stage.journal.add(0, 0, bytes(16), [])
    stage.close()
    return stage.path


def test_its_name_says_what_it_is(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "x.bin", "p")
    assert stage.path.parent == tmp_path
    assert stage.path.name.startswith(f".x.bin.avops-partial-{os.getpid()}-")
    assert Stage(tmp_path / "x.bin", "p").path != stage.path


def test_taking_up(tmp_path: Path) -> None:
    path = left(tmp_path / "x", a=b"data")
    stage = Stage(tmp_path / "x", "p")
    assert stage.take_up()
    assert stage.path == path
    assert stage.journal is not None
    assert list(stage.journal.entries) == [(0, 0)]
    file = stage.open("a", 4)
    assert file.read(10, 0) == b"data"
    file.close()
    stage.remove()
    assert os.listdir(tmp_path) == []


def test_nothing_to_take_up(tmp_path: Path) -> None:
    left(tmp_path / "other")
    left(tmp_path / "x", plan="q")
    (tmp_path / ".x.avops-partial-1-a").write_bytes(b"a file")
    before = sorted(os.listdir(tmp_path))
    assert not Stage(tmp_path / "x", "p").take_up()
    assert sorted(os.listdir(tmp_path)) == before


def test_the_latest_is_taken_up(tmp_path: Path) -> None:
    paths = [left(tmp_path / "x") for _ in range(3)]
    for age, path in zip((1, 3, 2), paths, strict=True):
        os.utime(path, (age, age))
    assert Stage(tmp_path / "x", "p").leftovers() == (paths[0], paths[2], paths[1])
    stage = Stage(tmp_path / "x", "p")
    assert stage.take_up()
    assert stage.path == paths[1]
    stage.close()


def test_a_living_runs_is_neither_taken_up_nor_a_leftover(tmp_path: Path) -> None:
    living, other = Stage(tmp_path / "x", "p"), Stage(tmp_path / "x", "p")
    living.create()
    assert other.leftovers() == ()
    assert other.held() == 0
    assert not other.take_up()
    living.close()
    assert other.leftovers() == (living.path,)
    assert other.take_up()
    other.close()


def test_what_a_run_left_that_was_killed_at_once_is_removed(tmp_path: Path) -> None:
    empty = tmp_path / ".x.avops-partial-1-a"
    empty.mkdir()
    for number, text in enumerate((b"", b"0123456789abcdef {")):
        path = tmp_path / f".x.avops-partial-2-{number}"
        path.mkdir()
        (path / JOURNAL).write_bytes(text)
    kept = tmp_path / ".x.avops-partial-3-a"
    (kept / "files").mkdir(parents=True)
    assert not Stage(tmp_path / "x", "p").take_up()
    assert os.listdir(tmp_path) == [kept.name]


def test_space_held(tmp_path: Path) -> None:
    assert Stage(tmp_path / "x", "p").held() == 0
    left(tmp_path / "x", plan="q", a=bytes(1 << 20))
    assert Stage(tmp_path / "x", "p").held() == 0
    path = left(tmp_path / "x", a=b"a", b=bytes(100_000))
    expected = sum(512 * file.stat().st_blocks for file in (path / "files").iterdir())
    assert Stage(tmp_path / "x", "p").held() == expected >= 100_000


@pytest.mark.parametrize("what", ["symlink", "hard link", "directory", "nothing"])
def test_what_is_not_the_killed_runs_own_is_not_written_into(tmp_path: Path, what: str) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    path = left(tmp_path / "x") / "files/a"
    if what == "symlink":
        path.symlink_to(precious)
    elif what == "hard link":
        path.hardlink_to(precious)
    elif what == "directory":
        path.mkdir()
        (path / "b").write_bytes(b"b")
    stage = Stage(tmp_path / "x", "p")
    assert stage.take_up()
    file = stage.open("a", 3)
    file.write(b"new", 0)
    file.close()
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert precious.read_bytes() == b"precious"
    stage.close()


def test_strays_are_cleared(tmp_path: Path) -> None:
    path = left(tmp_path / "x", a=b"a", old=b"old")
    (path / "files/directory").mkdir()
    (path / "files/link").symlink_to(tmp_path)
    stage = Stage(tmp_path / "x", "p")
    assert stage.take_up()
    stage.clear(frozenset({"a", "never written"}))
    assert os.listdir(stage.files) == ["a"]
    assert tmp_path.exists()
    stage.close()


def test_names_with_glob_characters(tmp_path: Path) -> None:
    path = left(tmp_path / "x[1]*?")
    left(tmp_path / "x1")
    assert Stage(tmp_path / "x[1]*?", "p").leftovers() == (path,)


def test_a_directory_that_vanishes_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run removes its own between the listing and the question how old it is."""
    left(tmp_path / "x")
    gone = tmp_path / ".x.avops-partial-1-a"
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [gone, *real(path, pattern)])
    assert len(Stage(tmp_path / "x", "p").leftovers()) == 1


def test_removing_is_final_and_repeatable(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "x", "p")
    stage.remove()
    stage.create()
    stage.remove()
    stage.remove()
    assert os.listdir(tmp_path) == []
