"""verify: what merge wrote is well, and every kind of damage is listed, all of it at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.disk import RECIPE_NAME, encode_header
from avops.disk.digest import BLOCK, file_digest
from avops.dtypes import DTYPES
from avops.errors import CheckpointError
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import merge, plan_merge
from avops.stream.verify import VerifyReport, verify
from families import Family

INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))


@pytest.fixture
def merged(sharded_family: Family, tmp_path: Path) -> Path:
    """A directory as merge writes it."""
    return write(sharded_family, tmp_path / "merged")


def write(family: Family, out: Path) -> Path:
    term = Term(Source("one", str(family.one)), parse_lam(".5", "test"), ".5")
    merge(plan_merge(Recipe(str(family.base), (term,)), out))
    return out


def problems(path: Path, **options: Any) -> list[str]:
    return [str(problem) for problem in verify(path, **options).problems]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps(change(data) or data))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def forget(directory: Path, *names: str) -> None:
    """Take ``names`` out of the recipe."""
    edit(directory / RECIPE_NAME, lambda r: [r["files"].pop(name) for name in names] and r)


def test_a_merged_directory(merged: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(merged, progress=lambda *now: seen.append(now))
    names = {path.name for path in merged.iterdir()} - {RECIPE_NAME}
    assert (report.problems, report.notes) == ((), ())
    assert report.recipe == RECIPE_NAME
    assert report.files == report.digests == len(names)
    assert report.tensors == 8
    assert report.bytes_read == sum((merged / name).stat().st_size for name in names)
    assert seen[-1] == (report.bytes_read, report.bytes_read)


def test_a_merged_file(family: Family, tmp_path: Path) -> None:
    out = write(family, tmp_path / "out" / "merged.safetensors")
    report = verify(out)
    assert (report.problems, report.notes) == ((), ())
    assert report.recipe == f"merged.{RECIPE_NAME}"
    assert (report.files, report.digests, report.tensors) == (1, 1, 8)
    flip(out, -1)
    (text,) = problems(out)
    assert text.startswith("merged.safetensors: its xxh3 digest is ")
    flip(out, -1)
    # Renamed together with its recipe, it is still checked.
    out.rename(out.with_name("best.safetensors"))
    (out.parent / f"merged.{RECIPE_NAME}").rename(out.parent / f"best.{RECIPE_NAME}")
    report = verify(out.with_name("best.safetensors"))
    assert report.digests == 1
    assert report.notes == (
        f"best.{RECIPE_NAME} calls the file 'merged.safetensors': it was renamed",
    )


def test_one_shard_of_a_directory(merged: Path) -> None:
    report = verify(merged / TWO)
    assert (report.recipe, report.files, report.digests) == (RECIPE_NAME, 1, 1)
    flip(merged / TWO, -1)
    assert len(problems(merged / TWO)) == 1
    assert problems(merged / ONE) == []
    # The directory's recipe says nothing of a file that it does not list.
    shutil.copy(merged / ONE, merged / "mine.safetensors")
    report = verify(merged / "mine.safetensors")
    assert (report.problems, report.recipe, report.digests) == ((), None, 0)


@pytest.mark.parametrize("name", [ONE, TWO, THREE, "config.json", "README.md", INDEX])
def test_one_changed_bit(merged: Path, name: str) -> None:
    wanted = file_digest(merged / name)
    # The last byte: of a tensor, or a line break.
    flip(merged / name, -1)
    first, *more = problems(merged)
    expected = f"{name}: its xxh3 digest is {file_digest(merged / name)}, expected {wanted}"
    texts = [first, *more]
    assert f"{expected}: its bytes were changed; copy or merge it again" in texts
    # A changed index or config may be unreadable, too, and then that is said as well.
    assert len(texts) == 1 or name == INDEX


def test_sizes_and_missing_files(merged: Path) -> None:
    size = (merged / ONE).stat().st_size
    os.truncate(merged / ONE, size - 1)
    (merged / THREE).unlink()
    (merged / "config.json").unlink()
    (merged / "tokenizer.json").write_text("{}")
    found = problems(merged)
    assert f"{ONE}: {size - 1:,} bytes, expected {size:,}; copy it again" in found
    assert any(text.startswith(f"{ONE}: not a valid safetensors file: the data") for text in found)
    assert (
        f"{THREE}: missing, but {RECIPE_NAME} and {INDEX} name it; copy or merge it again" in found
    )
    assert f"config.json: missing, but {RECIPE_NAME} names it; copy or merge it again" in found
    assert "tokenizer.json: 2 bytes, expected 19; copy it again" in found
    assert len(found) == 5


def test_headers(merged: Path) -> None:
    data = (merged / TWO).read_bytes()
    (merged / TWO).write_bytes(data.replace(b'"I64"', b'"I46"', 1))
    found = problems(merged)
    assert any("has the unknown dtype 'I46'" in text for text in found)
    assert any(text.startswith(f"{TWO}: its xxh3 digest is") for text in found)
    assert len(found) == 2


def test_the_index_both_ways(merged: Path) -> None:
    forget(merged, INDEX)

    def change(index: Any) -> None:
        index["weight_map"]["model.scale"] = ONE
        index["weight_map"]["model.new"] = TWO
        index["weight_map"]["model.gone"] = "model-9.safetensors"
        del index["weight_map"]["model.router.weight"]

    edit(merged / INDEX, change)
    both = "2 tensors ('model.router.weight', 'model.scale')"
    assert problems(merged) == [
        f"model-9.safetensors: missing, but {INDEX} names it; copy or merge it again",
        f"{INDEX}: puts 1 tensor ('model.scale') into {ONE}, which lacks them",
        f"{INDEX}: puts 1 tensor ('model.new') into {TWO}, which lacks them",
        f"{INDEX}: does not put {both} into {THREE}, which holds them",
    ]


def test_total_size(merged: Path) -> None:
    forget(merged, INDEX)
    size = json.loads((merged / INDEX).read_text())["metadata"]["total_size"]
    edit(merged / INDEX, lambda index: index["metadata"].update(total_size=size + 1))
    assert problems(merged) == [
        f"{INDEX}: total_size is {size + 1}, but the tensors have {size} bytes"
    ]
    edit(merged / INDEX, lambda index: index["metadata"].pop("total_size") and index)
    report = verify(merged)
    assert report.problems == ()
    assert f"{INDEX} has no total_size" in report.notes


def test_a_tensor_in_two_shards(merged: Path) -> None:
    shutil.copy(merged / ONE, merged / TWO)
    forget(merged, TWO)
    found = problems(merged)
    assert f"{TWO}: tensor 'model.embed.weight' is in {ONE}, too" in found


def test_extra_files_are_noted(merged: Path) -> None:
    (merged / "notes.txt").write_text("mine")
    (merged / "training_args.bin").write_bytes(b"x")
    report = verify(merged)
    assert report.problems == ()
    assert report.notes == ("not in the recipe, so not checked: notes.txt, training_args.bin",)


def test_without_digests(merged: Path, sharded_family: Family) -> None:
    """A base as it came, and a directory with the recipe of an older version."""
    report = verify(sharded_family.base)
    assert (report.problems, report.recipe, report.digests, report.tensors) == ((), None, 0, 8)
    assert report.notes == ("no recipe of avops here, so no digests: headers and values only",)
    assert report.bytes_read > 0
    edit(merged / RECIPE_NAME, lambda r: r.update(files=[*r["files"], RECIPE_NAME]))
    report = verify(merged)
    assert (report.problems, report.digests) == ((), 0)
    assert report.files == len(list(merged.iterdir())) - 1
    assert report.notes[0].startswith(f"{RECIPE_NAME} holds no digests, as older versions")
    (merged / "config.json").unlink()
    assert problems(merged) == [
        f"config.json: missing, but {RECIPE_NAME} names it; copy or merge it again"
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "no valid JSON"),
        (b"[]", "no JSON object"),
        (b'{"a":' * 100_000, "no valid JSON: maximum recursion"),
        (b'{"files": 1}', "neither a list nor an object"),
        (b'{"files": {"../x": {}}}', "names '../x', expected a plain file name"),
        (b'{"files": {"x": {"bytes": "1"}}}', "no whole number of bytes"),
        (b'{"files": {"x": {"bytes": true}}}', "no whole number of bytes"),
        (b'{"files": {"x": {"bytes": 1, "xxh3": "00"}}}', "no xxh3 digest of 32 digits"),
        (b'{"files": {"x": 1}}', "no whole number of bytes"),
        (b'{"files": [1]}', "names '1', expected a plain"),
    ],
)
def test_a_recipe_that_lies(merged: Path, raw: bytes, message: str) -> None:
    (merged / RECIPE_NAME).write_bytes(raw)
    (text,) = problems(merged)
    assert text.startswith(f"{RECIPE_NAME}: not a recipe that can be read: ")
    assert message in text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "no valid JSON"),
        (b"{}", "it has no weight_map"),
        (b'{"weight_map": {}}', "it has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "it puts tensor 'a' into '1'"),
        (b'{"weight_map": {"a": "/etc/x.safetensors"}}', "expected a plain file name"),
    ],
)
def test_an_index_that_lies(merged: Path, raw: bytes, message: str) -> None:
    (merged / INDEX).write_bytes(raw)
    forget(merged, INDEX)
    found = problems(merged)
    assert any(
        text.startswith(f"{INDEX}: not an index that can be read: ") and message in text
        for text in found
    )


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone: cannot open the checkpoint: No such file"):
        verify(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert problems(tmp_path / "empty") == [
        "empty: no safetensors file in this directory, expected model.safetensors or " + INDEX
    ]
    (tmp_path / "x.bin").write_bytes(b"pickle")
    (text,) = problems(tmp_path / "x.bin")
    assert "a PyTorch pickle" in text
    os.mkfifo(tmp_path / "f.safetensors")
    assert problems(tmp_path / "f.safetensors") == [
        "f.safetensors: not a regular file, expected a safetensors file"
    ]


@pytest.mark.parametrize("pad", [0, 1, 3, 7])
def test_nonfinite_values_are_counted_once(tmp_path: Path, pad: int) -> None:
    """At the edges of blocks and tensors, in data that is not aligned, over several blocks."""
    half = BLOCK // 4
    path = tmp_path / "x.safetensors"
    sizes = {"a": 3, "b": 5 * half + 1, "c": half}
    arrays = {name: np.ones(size, "<f4") for name, size in sizes.items()}
    head = encode_header([(n, DTYPES["F32"], (size,)) for n, size in sizes.items()], {})[0]
    start = len(head) + pad
    begins = {"a": start, "b": start + 12, "c": start + 12 + 4 * sizes["b"]}
    wanted = dict.fromkeys(sizes, 0)
    for name, begin in begins.items():
        end = begin + 4 * sizes[name]
        edges = {begin, end - 4} | {at for at in range(0, end + BLOCK, BLOCK) if begin < at < end}
        places = {(edge - begin + shift) // 4 for edge in edges for shift in (-4, -1, 0, 3)}
        places = {place for place in places if 0 <= place < sizes[name]}
        arrays[name][sorted(places)] = np.nan
        wanted[name] = len(places)
    length = (len(head) - 8 + pad).to_bytes(8, "little")
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(length + head[8:] + b" " * pad + data)
    for threads in (1, 3):
        report = verify(path, threads=threads)
        assert report.nonfinite == wanted
        assert [str(problem) for problem in report.problems] == [
            f"x.safetensors: tensor {name!r}: {count:,} values are NaN or infinite"
            for name, count in wanted.items()
        ]


def test_allowed_nonfinite(tmp_path: Path) -> None:
    head, _ = encode_header([("w", DTYPES["F16"], (2,)), ("i", DTYPES["I16"], (1,))], {})
    path = tmp_path / "x.safetensors"
    path.write_bytes(head + np.array([1, np.inf], "<f2").tobytes() + b"\xff\xff")
    assert problems(path) == ["x.safetensors: tensor 'w': 1 value is NaN or infinite"]
    report: VerifyReport = verify(path, allow_nonfinite=True)
    assert report.problems == ()
    assert "x.safetensors: tensor 'w': 1 value is NaN or infinite, as allowed" in report.notes


def test_a_file_that_changes_meanwhile(merged: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: changed while it was in use"):
        verify(merged, progress=lambda *_: os.utime(merged / "config.json", (1, 1)))
