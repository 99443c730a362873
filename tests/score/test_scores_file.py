"""Scores files: read back as written, the same bytes, and nothing else is accepted."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.errors import DataError
from avops.score import (
    Candidate,
    Items,
    ScoreTable,
    TokenPlan,
    encode,
    instructed,
    read_table,
    summarise,
    to_npz,
)

Arrays = dict[str, Any]


@pytest.fixture
def table(items: Items, plan: TokenPlan, tokenizer: Any) -> ScoreTable:
    told = encode(instructed(items, "please be short"), tokenizer)
    scores = -np.random.default_rng(0).random((2, 5, 3)).astype(np.float32)
    start = ScoreTable.start(
        items,
        [plan, told],
        instructions=[None, ("exp", "please be short")],
        about={"base": "b", "vectors": {"λ": "f00"}},
    )
    one = Candidate((("λ", "-1"), ("fin", ".5")), device="cuda")
    return start.append(one, scores[0]).append(Candidate((), "exp", 1), scores[1])


@pytest.fixture
def path(tmp_path: Path, table: ScoreTable) -> Path:
    path = tmp_path / "scores.npz"
    path.write_bytes(to_npz(table))
    return path


def test_round_trip(table: ScoreTable, path: Path, items: Items) -> None:
    read = read_table(path)
    assert to_npz(read) == path.read_bytes()
    assert read.entries == table.entries
    assert read.candidates == ("λ:-1 fin:.5", "base, told exp")
    assert read.scores.tobytes() == table.scores.tobytes()
    assert read.scores.dtype == np.float32
    for name in ("tokens", "nbytes", "characters"):
        assert np.array_equal(getattr(read, name), getattr(table, name))
    assert read.plans == tuple(json.loads(json.dumps(table.plans)))
    assert read.plans[1]["text"] == "please be short"
    assert read.about == table.about
    assert [(i.domain, i.id, i.line) for i in read.items] == [
        (i.domain, i.id, i.line) for i in items
    ]
    assert read.items.source == items.source
    for norm in ("token", "sum", "byte", "char"):
        for candidate in range(2):
            mine = summarise(read.under(norm, candidate), read.items)
            assert mine == summarise(table.under(norm, candidate), items)


def test_numpy_opens_it(path: Path, table: ScoreTable) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == sorted(
            ["scores", "tokens", "bytes", "characters", "lines", "candidates", "levels", "domains",
             "ids", "record"]
        )  # fmt: skip
        assert arrays["scores"].shape == (2, 5, 3)
        assert arrays["tokens"].shape == (2, 5, 3)
        assert arrays["candidates"].tolist() == list(table.candidates)
        assert arrays["ids"].tolist() == [""] * 5
        assert json.loads(str(arrays["record"]))["format"] == 1
    with zipfile.ZipFile(path) as archive:  # no clock in it
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_table_without_candidates(items: Items, plan: TokenPlan, tmp_path: Path) -> None:
    path = tmp_path / "empty.npz"
    path.write_bytes(to_npz(ScoreTable.start(items, [plan])))
    read = read_table(path)
    assert (read.entries, read.scores.shape) == ((), (0, 5, 3))


def test_ids_come_back(tmp_path: Path, table: ScoreTable, write_items: Any) -> None:
    import dataclasses

    entries = tuple(
        dataclasses.replace(item, id=f"n{i}" if i else None) for i, item in enumerate(table.items)
    )
    named = dataclasses.replace(table, items=dataclasses.replace(table.items, entries=entries))
    path = tmp_path / "scores.npz"
    path.write_bytes(to_npz(named))
    assert [item.id for item in read_table(path).items] == [None, "n1", "n2", "n3", "n4"]


# ---- what is refused


def rewritten(path: Path, change: Callable[[Arrays], object]) -> Path:
    """The file with its arrays changed, still a valid zip of arrays."""
    with np.load(path) as opened:
        arrays = dict(opened)
    change(arrays)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def edit(**changes: Any) -> Callable[[Arrays], object]:
    """Change keys of the record."""

    def change(arrays: Arrays) -> None:
        record = json.loads(str(arrays["record"])) | changes
        arrays["record"] = np.array(json.dumps(record))

    return change


def poke(name: str, index: tuple[int, ...], value: Any) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


CASES: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (lambda a: a.pop("bytes"), "arrays other than .*: bytes.npy"),
    "extra": (lambda a: a.update(more=np.zeros(1)), "arrays other than .*: more.npy"),
    "f64": (lambda a: a.update(scores=a["scores"].astype("f8")), "scores holds <f8, expected <f4"),
    "big endian": (lambda a: a.update(tokens=a["tokens"].astype(">i4")), "tokens holds >i4"),
    "bytes as names": (lambda a: a.update(levels=a["levels"].astype("S")), "levels holds .S"),
    "fortran": (lambda a: a.update(bytes=np.asfortranarray(a["bytes"])), "bytes holds <i4"),
    "fewer items": (lambda a: a.update(scores=a["scores"][:, 1:]), r"scores has shape \[2, 4, 3\]"),
    "other plans": (lambda a: a.update(tokens=a["tokens"][:1]), r"tokens has shape \[1, 5, 3\]"),
    "flat": (lambda a: a.update(bytes=a["bytes"].ravel()), r"bytes has shape \[15\]"),
    "few lines": (lambda a: a.update(lines=a["lines"][1:]), "of different lengths"),
    "nested names": (lambda a: a.update(ids=a["ids"][None]), r"ids has shape \[1, 5\]"),
    "nan": (poke("scores", (1, 2, 0), np.nan), "not finite numbers of at most 0"),
    "above 0": (poke("scores", (0, 0, 0), 0.5), "not finite numbers of at most 0"),
    "no tokens": (poke("tokens", (0, 1, 1), 0), "responses without tokens"),
    "one line twice": (poke("lines", (1,), 1), "two items of one line"),
    "one level twice": (poke("levels", (1,), "exp"), "levels that are not different"),
    "other name": (poke("candidates", (0,), "base"), "that are not its record's"),
    "format 2": (edit(format=2), "format 2, and this version of avops reads 1"),
    "no plans": (edit(plans=None), "its record has no plans"),
    "plan of 3": (
        edit(candidates=[{"av": [["λ", "-1"], ["fin", ".5"]], "instruction": None, "plan": 0,
                          "device": "cpu"},
                         {"av": [], "instruction": "exp", "plan": 3, "device": "cpu"}]),
        "with a plan that is not there",
    ),
    "negative plan": (
        edit(candidates=[{"av": [], "instruction": None, "plan": -1, "device": "cpu"}]),
        "a candidate {'av'",
    ),
    "no device": (edit(candidates=[{"av": [], "instruction": None, "plan": 0}]), "a candidate {"),
    "a number as name": (
        edit(candidates=[{"av": [[1, "2"]], "instruction": None, "plan": 0, "device": "cpu"}]),
        "a candidate {",
    ),
    "not JSON": (lambda a: a.update(record=np.array("{")), "Expecting property name"),
    "a list": (lambda a: a.update(record=np.array("[]")), r"format \[\], and this version"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_other_contents(path: Path, case: str) -> None:
    change, message = CASES[case]
    rewritten(path, change)
    with pytest.raises(DataError, match=f"scores.npz: not a scores file .*{message}"):
        read_table(path)


def test_rewriting_alone_is_no_mistake(path: Path, table: ScoreTable) -> None:
    assert read_table(rewritten(path, lambda _: None)).entries == table.entries


def test_other_files(tmp_path: Path, path: Path) -> None:
    whole = path.read_bytes()
    with pytest.raises(DataError, match=r"none.npz: the scores file cannot be read: No such file"):
        read_table(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        read_table(tmp_path)
    damaged = bytearray(whole)
    damaged[whole.index(b"scores.npy") + 200] ^= 1
    for content in (b"", b"text", b"PK\x03\x04 broken", whole[:-40], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"not a scores file .*expected an .npz file from avops"
        ):
            read_table(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a scores file"):
        read_table(tmp_path / "array.npy")


def repacked(path: Path, name: str, content: bytes, **how: Any) -> Path:
    """The file with one entry of the zip replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    entries[name] = content
    with zipfile.ZipFile(path, "w", **how) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return path


def test_pickles_are_not_opened(path: Path) -> None:
    """An array of objects would be unpickled by numpy: here its header is enough."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([print], object), allow_pickle=True)
    repacked(path, "ids.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"ids holds \|O, expected <U"):
        read_table(path)


@pytest.mark.parametrize("shape", [(10**15,), (2**40, 2**40), (2**62, 4), (-5, -3)])
def test_nothing_is_allocated_on_a_headers_word(path: Path, shape: tuple[int, ...]) -> None:
    stream = io.BytesIO()
    header = {"descr": "<i4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    repacked(path, "bytes.npy", stream.getvalue() + bytes(60))
    message = re.escape(f"bytes has shape {list(shape)}")
    with pytest.raises(DataError, match=rf"not a scores file \({message}"):
        read_table(path)


def test_texts_without_width(path: Path) -> None:
    stream = io.BytesIO()
    header = {"descr": "<U0", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(stream, header)
    repacked(path, "ids.npy", stream.getvalue())
    with pytest.raises(DataError, match="ids has shape"):
        read_table(path)


def test_compressed_files(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("lines.npy")
    repacked(path, "lines.npy", lines, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"scores.npy is compressed or encrypted"):
        read_table(path)
