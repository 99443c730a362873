"""The safetensors header: a strict parser and an encoder.

Layout: 8 bytes little-endian length N, N bytes of JSON, then the data buffer.
The parser accepts a subset of what the safetensors package accepts. It also refuses duplicate
keys, unknown fields and numbers written as anything but plain digits.
Source: https://github.com/huggingface/safetensors (format section and tensor.rs).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from avops.dtypes import DTYPES, DType
from avops.errors import CheckpointError

MAX_HEADER = 100_000_000
_MAX_U64 = 2**64 - 1
_ALIGN = 4096


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: ``begin`` and ``end`` are byte offsets in the data buffer."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A parsed header: entries in offset order, metadata, and the length of the prefix in bytes."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    data_start: int


class _HeaderError(ValueError):
    pass


def parse_length(prefix: bytes, file_size: int, where: str) -> int:
    """The JSON length N in the first 8 bytes of a file of ``file_size`` bytes.

    Raises CheckpointError naming ``where`` when the file is too short or N is out of bounds.
    """
    if len(prefix) < 8 or file_size < 8:
        _fail(where, f"{file_size} bytes, expected at least 8 for the header's length")
    (length,) = struct.unpack("<Q", prefix[:8])
    if length > MAX_HEADER:
        _fail(where, f"header length {length}, expected at most {MAX_HEADER} bytes")
    if 8 + length > file_size:
        _fail(where, f"header length {length}, but the file has only {file_size} bytes: truncated")
    return int(length)


def parse_header(text: bytes, data_size: int, where: str) -> Header:
    """Parse the JSON ``text`` of a file whose data buffer has ``data_size`` bytes.

    Raises CheckpointError naming ``where`` and the tensor for anything malformed: holes,
    overlaps, duplicate names, sizes that contradict the shapes, offsets outside the file.
    """
    try:
        table = _load(text)
        metadata = _metadata(table.pop("__metadata__", {}))
        entries = sorted(
            (_entry(name, value) for name, value in table.items()),
            key=lambda entry: (entry.begin, entry.end),
        )
        _check_contiguous(entries, data_size)
    except _HeaderError as error:
        _fail(where, str(error))
    return Header(tuple(entries), metadata, 8 + len(text))


def encode_header(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Header bytes for ``tensors`` in file order, and each tensor's absolute file offset.

    The header is padded with spaces so that data starts at a multiple of 4096 (direct I/O).
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    begins = {}
    for name, dtype, shape in tensors:
        size = element_count(shape) * dtype.bits // 8
        table[name] = {
            "dtype": dtype.tag,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        begins[name] = offset
        offset += size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {k: start + v for k, v in begins.items()}


def element_count(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of ``shape`` (1 for a scalar)."""
    count = 1
    for size in shape:
        count *= size
    return count


def _fail(where: str, problem: str) -> NoReturn:
    raise CheckpointError(
        f"{where}: not a valid safetensors file: {problem}; "
        "download or save it again, or check it with `avops inspect`"
    )


def _load(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _HeaderError("the header does not start with '{'")
    try:
        table = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_digits,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise _HeaderError(f"the header is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _HeaderError(f"the header is not JSON ({error.msg} at {error.pos})") from None
    except RecursionError:
        raise _HeaderError("the header is nested too deeply") from None
    if not isinstance(table, dict):
        raise _HeaderError("the header is not a JSON object")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise _HeaderError(f"duplicate key {key!r}")
        if not _is_unicode(key):
            raise _HeaderError(f"name {key!r} is not valid Unicode")
        table[key] = value
    return table


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digits(text: str) -> int:
    # int() refuses more than 4300 digits with a ValueError of its own; u64 has at most 20.
    if not text.isdecimal() or len(text) > 20 or int(text) > _MAX_U64:
        raise _HeaderError(f"number {text[:40]}, expected a whole number below 2^64")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise _HeaderError(f"number {text[:40]}, expected a whole number")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _HeaderError("__metadata__ is not an object of texts")
    for key, text in value.items():
        if not isinstance(text, str) or not _is_unicode(text):
            raise _HeaderError(f"__metadata__[{key!r}] is not a text")
    return value


def _is_u64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        fields = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise _HeaderError(f"tensor {name!r} has {fields}, expected dtype, shape and data_offsets")
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(tag, str) or tag not in DTYPES:
        raise _HeaderError(f"tensor {name!r} has the unknown dtype {tag!r}")
    if not isinstance(shape, list) or not all(map(_is_u64, shape)):
        raise _HeaderError(f"tensor {name!r} has the shape {shape!r}, expected whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_u64, offsets)):
        raise _HeaderError(f"tensor {name!r} has data_offsets {offsets!r}, expected [begin, end]")
    dtype = DTYPES[tag]
    bits = _checked_bits(name, shape, dtype)
    begin, end = offsets
    if end < begin or (end - begin) * 8 != bits:
        raise _HeaderError(
            f"tensor {name!r} of {tag} {shape} needs {bits / 8:g} bytes, got data_offsets {offsets}"
        )
    return Entry(name, dtype, tuple(shape), begin, end)


def _checked_bits(name: str, shape: list[int], dtype: DType) -> int:
    bits = 1
    for size in (*shape, dtype.bits):
        bits *= size
        if bits > _MAX_U64:
            raise _HeaderError(f"tensor {name!r} of shape {shape} overflows 64 bits")
    if bits % 8:
        raise _HeaderError(f"tensor {name!r} of {dtype} {shape} does not fill whole bytes")
    return bits


def _check_contiguous(entries: list[Entry], data_size: int) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "follows a hole"
            raise _HeaderError(f"tensor {entry.name!r} starts at {entry.begin}: it {what}")
        position = entry.end
    if position != data_size:
        what = "truncated" if data_size < position else "with bytes no tensor owns"
        raise _HeaderError(f"the data has {data_size} bytes, the header names {position}: {what}")
