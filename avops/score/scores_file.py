"""Scores files: a ScoreTable as ``.npz``, the same bytes for the same table.

An uncompressed zip of arrays that numpy.load opens without pickle:

    scores      f32 [candidate, item, level]   mean log-prob per token
    tokens      i32 [plan, item, level]        T_r
    bytes       i32 [item, level]              of the response's text in UTF-8
    characters  i32 [item, level]              of the response's text, code points
    lines       i64 [item]                     in the item file
    candidates  names     levels, domains, ids  names (an id that was not given is "")
    record      JSON: format, data, candidates, plans, and where the scores come from

Reading is strict: exactly these arrays, of these types and shapes, with finite scores.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError
from avops.score.table import Candidate, ScoreTable, bare_items

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

FORMAT = 1
_MAX_HEADER = 4096
_NUMBERS = {"scores": "<f4", "tokens": "<i4", "bytes": "<i4", "characters": "<i4", "lines": "<i8"}
_NAMES = ("candidates", "levels", "domains", "ids")
_ARRAYS = (*_NUMBERS, *_NAMES, "record")


def to_npz(table: ScoreTable) -> bytes:
    """The scores file of ``table``."""
    items = table.items
    record = {
        "format": FORMAT,
        "data": items.source,
        "candidates": [asdict(candidate) for candidate in table.entries],
        "plans": list(table.plans),
        "about": dict(table.about),
    }
    arrays = {
        "scores": table.scores.astype("<f4"),
        "tokens": table.tokens.astype("<i4"),
        "bytes": table.nbytes.astype("<i4"),
        "characters": table.characters.astype("<i4"),
        "lines": np.array([item.line for item in items], "<i8"),
        "candidates": _texts(table.candidates),
        "levels": _texts(items.levels),
        "domains": _texts([item.domain for item in items]),
        "ids": _texts([item.id or "" for item in items]),
        "record": np.array(json.dumps(record, ensure_ascii=False, allow_nan=False), "<U"),
    }
    out = io.BytesIO()
    # ZipInfo's own date is 1980: the same table gives the same bytes.
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue())
    return out.getvalue()


def read_table(path: str | PathLike[str]) -> ScoreTable:
    """Read a scores file. Raises DataError for anything that ``to_npz`` would not write."""
    try:
        arrays = _arrays(Path(path))
        table = _table(arrays, json.loads(str(arrays["record"][()])))
        _check(table, arrays)
    except OSError as error:
        raise DataError(
            f"{path}: the scores file cannot be read: {error.strerror}; give a file written with "
            "--save or --table"
        ) from error
    except (_Unexpected, ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a scores file ({error}), expected an .npz file from avops; "
            "write it again with --save"
        ) from error
    return table


class _Unexpected(Exception):  # noqa: N818
    """What a scores file does not hold."""


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        expected = [f"{name}.npy" for name in _ARRAYS]
        if sorted(names) != sorted(expected):
            odd = sorted(set(names) ^ set(expected)) or ["one of them twice"]
            raise _Unexpected(f"arrays other than {', '.join(_ARRAYS)}: {odd[0]}")
        return {
            info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()
        }


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array. Its header is held to the entry's size before anything is allocated."""
    name = info.filename.removesuffix(".npy")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _Unexpected(f"{info.filename} is compressed or encrypted")
    try:
        data = archive.read(info)
    except (RuntimeError, NotImplementedError, EOFError) as error:
        raise _Unexpected(f"{info.filename}: {error}") from error
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise _Unexpected(f"{info.filename} is not an array of numpy's format 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
    wanted = _NUMBERS.get(name)
    if (dtype.str != wanted if wanted else dtype.str[:2] != "<U") or fortran or dtype.hasobject:
        raise _Unexpected(f"{name} holds {dtype.str}, expected {wanted or '<U (texts)'}")
    held = len(data) - stream.tell()
    sound = dtype.itemsize > 0 and all(size >= 0 for size in shape)
    if not sound or math.prod(shape) * dtype.itemsize != held:
        raise _Unexpected(f"{name} has shape {list(shape)}, and {len(data)} bytes")
    if 0 in shape:
        return np.empty(shape, dtype)
    array: NDArray[Any] = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
    return array


def _table(arrays: Mapping[str, NDArray[Any]], record: Any) -> ScoreTable:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        got = record.get("format") if isinstance(record, dict) else record
        raise _Unexpected(f"format {got!r}, and this version of avops reads {FORMAT}")
    for key, kind in {"data": str, "candidates": list, "plans": list, "about": dict}.items():
        if not isinstance(record.get(key), kind):
            raise _Unexpected(f"its record has no {key}")
    if not all(isinstance(plan, dict) for plan in record["plans"]):
        raise _Unexpected("a plan that is no object")
    for name in ("levels", "domains", "ids", "candidates", "lines"):
        if arrays[name].ndim != 1:
            raise _Unexpected(f"{name} has shape {list(arrays[name].shape)}, expected a list")
    if not len(arrays["domains"]) == len(arrays["ids"]) == len(arrays["lines"]):
        raise _Unexpected("domains, ids and lines of different lengths")
    return ScoreTable(
        scores=arrays["scores"],
        entries=tuple(map(_candidate, record["candidates"])),
        items=bare_items(
            record["data"],
            arrays["levels"].tolist(),
            arrays["domains"].tolist(),
            [name or None for name in arrays["ids"].tolist()],
            arrays["lines"].tolist(),
        ),
        tokens=arrays["tokens"],
        nbytes=arrays["bytes"],
        characters=arrays["characters"],
        plans=tuple(record["plans"]),
        about=record["about"],
    )


def _candidate(entry: Any) -> Candidate:
    try:
        av = tuple((name, lam) for name, lam in entry["av"])
        found = Candidate(av, entry["instruction"], entry["plan"], entry["device"])
        texts = [text for term in av for text in term] + [found.device, found.instruction or ""]
        if set(entry) != set(asdict(found)) or not all(isinstance(text, str) for text in texts):
            raise TypeError
        if type(found.plan) is not int or found.plan < 0:
            raise TypeError
    except (TypeError, KeyError, ValueError):
        raise _Unexpected(f"a candidate {entry!r}") from None
    return found


def _check(table: ScoreTable, arrays: Mapping[str, NDArray[Any]]) -> None:
    """That all parts are of one size, and scores are scores."""
    cell = (len(table.items), len(table.items.levels))
    shapes = {
        "scores": (len(table.entries), *cell),
        "tokens": (len(table.plans), *cell),
        "bytes": cell,
        "characters": cell,
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise _Unexpected(
                f"{name} has shape {list(arrays[name].shape)}, expected {list(shape)}"
            )
    if 0 in cell or len(set(table.items.levels)) < cell[1]:
        raise _Unexpected("no items, or levels that are not different")
    if len({item.line for item in table.items}) < cell[0]:
        raise _Unexpected("two items of one line")
    if tuple(arrays["candidates"].tolist()) != table.candidates:
        raise _Unexpected("names of candidates that are not its record's")
    if any(candidate.plan >= len(table.plans) for candidate in table.entries):
        raise _Unexpected("a candidate with a plan that is not there")
    if not (np.isfinite(table.scores) & (table.scores <= 0)).all():
        raise _Unexpected("scores that are not finite numbers of at most 0")
    if any((arrays[name] < 1).any() for name in ("tokens", "bytes", "characters")):
        raise _Unexpected("responses without tokens or characters")


def _texts(texts: tuple[str, ...] | list[str]) -> NDArray[np.str_]:
    return np.array(texts, "<U") if texts else np.empty(0, "<U1")
