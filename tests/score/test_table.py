"""The full table as a file: what is written is read back, and nothing is overwritten."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from avops.errors import DataError, NonFiniteError, OutputError, WriteError
from avops.score import Items, TokenPlan, read_table, write_table

CANDIDATES = ("med:-1 fin:0.5", "λ = 0")


@pytest.fixture
def scores() -> np.ndarray:
    values = -np.random.default_rng(0).random((2, 5, 3)).astype(np.float32)
    values[0, 1] = -1 / 3
    values[1, 2, 1:] = -0.01
    return values


def test_npz_round_trip(tmp_path: Path, scores: np.ndarray, items: Items, plan: TokenPlan) -> None:
    path = tmp_path / "table.npz"
    write_table(path, scores, CANDIDATES, items, plan)
    table = read_table(path)
    assert np.array_equal(table.scores, scores)
    assert table.scores.dtype == np.float32
    assert np.array_equal(table.tokens, plan.scored)
    assert table.candidates == CANDIDATES
    assert table.levels == ("exp", "gen", "avd")
    assert table.domains == ("med", "med", "leg", "leg", "fin")
    assert table.lines.tolist() == [1, 2, 3, 4, 5]
    assert table.ids == (None,) * 5
    assert table.record == plan.record.to_dict()
    assert os.listdir(tmp_path) == ["table.npz"]
    write_table(tmp_path / "again.npz", scores, CANDIDATES, items, plan)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_csv(tmp_path: Path, scores: np.ndarray, items: Items, plan: TokenPlan) -> None:
    path = tmp_path / "table.csv"
    write_table(path, scores, CANDIDATES, items, plan)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == scores.size
    assert list(rows[0]) == [
        "candidate", "domain", "item", "line", "id", "level", "mean_logprob", "tokens", "winner",
    ]  # fmt: skip
    got = np.array([np.float32(row["mean_logprob"]) for row in rows]).reshape(scores.shape)
    assert np.array_equal(got, scores)  # the text reads back as the same f32
    for number, row in enumerate(rows):
        candidate, item, level = np.unravel_index(number, scores.shape)
        assert row["candidate"] == CANDIDATES[candidate]
        assert (row["domain"], row["item"]) == (items[item].domain, str(item))
        assert (row["line"], row["level"]) == (str(item + 1), items.levels[level])
        assert int(row["tokens"]) == plan.scored[item, level]
    wins = np.array([float(row["winner"]) for row in rows]).reshape(scores.shape)
    assert wins[0, 1].tolist() == [0.333333] * 3
    assert wins[1, 2].tolist() == [0, 0.5, 0.5]
    assert wins[0, 0].tolist() == np.eye(3)[scores[0, 0].argmax()].tolist()


def test_existing_file_is_kept(
    tmp_path: Path, scores: np.ndarray, items: Items, plan: TokenPlan
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"table.csv: the file exists; choose another name or"):
        write_table(path, scores, CANDIDATES, items, plan)
    assert path.read_text() == "mine"
    write_table(path, scores, CANDIDATES, items, plan, force=True)
    assert path.read_text().startswith("candidate,")


@pytest.mark.parametrize("name", ["table", "table.json", "table.CSV", ".npz"])
def test_other_suffix(
    tmp_path: Path, scores: np.ndarray, items: Items, plan: TokenPlan, name: str
) -> None:
    with pytest.raises(OutputError, match=r"a table cannot be written as .*; name it .npz or .csv"):
        write_table(tmp_path / name, scores, CANDIDATES, items, plan)
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written(
    tmp_path: Path, scores: np.ndarray, items: Items, plan: TokenPlan
) -> None:
    write_table(tmp_path / "new/table.npz", scores, CANDIDATES, items, plan)
    assert (tmp_path / "new/table.npz").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written: .*; choose another place"):
        write_table(tmp_path / "file/table.npz", scores, CANDIDATES, items, plan)


def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path,
    scores: np.ndarray,
    items: Items,
    plan: TokenPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, real = tmp_path / "table.npz", os.fsync

    def appear(descriptor: int) -> None:
        path.write_text("theirs")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", appear)
    with pytest.raises(OutputError, match="the file exists"):
        write_table(path, scores, CANDIDATES, items, plan)
    assert path.read_text() == "theirs"
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_full_disk_leaves_nothing(
    tmp_path: Path,
    scores: np.ndarray,
    items: Items,
    plan: TokenPlan,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    path = tmp_path / f"table.{suffix}"
    path.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match=r"writing the table failed: No space left on device; fre"):
        write_table(path, scores, CANDIDATES, items, plan, force=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_scores_are_checked_first(
    tmp_path: Path, scores: np.ndarray, items: Items, plan: TokenPlan
) -> None:
    path = tmp_path / "table.npz"
    with pytest.raises(DataError, match=r"scores of 2 candidates, expected 1"):
        write_table(path, scores, CANDIDATES[:1], items, plan)
    with pytest.raises(DataError, match=r"shape \[5, 2\], expected \[5 items, 3 levels\]"):
        write_table(path, scores[:, :, :2], CANDIDATES, items, plan)
    scores[1, 3, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"line 4, level 'avd': the mean log-prob is nan"):
        write_table(path, scores, CANDIDATES, items, plan)
    assert not list(tmp_path.iterdir())


def test_reading_something_else(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    with pytest.raises(DataError, match=r"table.npz: not a score table \(.*No such file"):
        read_table(path)
    for content in (b"", b"PK\x03\x04 broken", b"text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a score table .*expected an .npz file from"):
            read_table(path)
    np.savez(path, scores=np.zeros(3))
    with pytest.raises(DataError, match=r"not a score table \('candidates is not a file"):
        read_table(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"not a score table \(one array without"):
        read_table(tmp_path / "array.npy")
