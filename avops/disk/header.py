"""The safetensors header: a strict parser and an encoder.

Layout: 8 bytes little-endian length N, N bytes of JSON, then the data buffer.
The parser accepts a subset of what the safetensors package accepts. It also refuses duplicate
keys, unknown fields, entries written as lists, white space before the header, more than MAX_RANK
dimensions, names of more than MAX_NAME characters, and more than MAX_METADATA texts of metadata.
Source: https://github.com/huggingface/safetensors (format section and tensor.rs).
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn

from avops.disk.strict_json import JsonError, Scanner, shown, unique
from avops.dtypes import DTYPES, DType
from avops.errors import CheckpointError

MAX_HEADER = 100_000_000
MAX_RANK = 64
MAX_NAME = 4096
MAX_METADATA = 65_536
# A legal entry with MAX_RANK numbers of 20 digits has about 1,500 characters; the rest is layout.
_MAX_ENTRY = 10_000
_EXPECTED = "dtype, shape and data_offsets"
_MAX_U64 = 2**64 - 1
_ALIGN = 4096
# Spellings of dtype and shape that are remembered: a model has few.
_MAX_KINDS = 4096
_PLACE = attrgetter("begin", "end")


class Entry(NamedTuple):
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
        entries, metadata = _read(text)
        entries.sort(key=_PLACE)
        _check_contiguous(entries, data_size)
    except JsonError as error:
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


def _read(text: bytes) -> tuple[list[Entry], dict[str, str]]:
    if not text.startswith(b"{"):
        raise JsonError("the header does not start with '{'")
    scanner = Scanner(text, _DECODER)
    entries: list[Entry] = []
    metadata: dict[str, str] = {}
    kinds: dict[str, tuple[DType, tuple[int, ...], int]] = {}
    for name, plain in scanner.plain_members(_MEMBER):
        if plain:
            _, spelling, tag, sizes, begin, end = plain.groups()
            span = int(begin), int(end)
            known = kinds.get(spelling)
            if known and known[2] == span[1] - span[0]:
                # One text object for each name, however many checkpoints have it.
                entries.append(Entry(sys.intern(name), *known[:2], *span))
                continue
            shape = tuple(map(int, sizes.split(","))) if sizes else ()
            entries.append(_entry(name, tag, shape, *span))
            if len(kinds) < _MAX_KINDS:
                kinds[spelling] = (entries[-1].dtype, shape, span[1] - span[0])
        elif name == "__metadata__":
            metadata = _metadata(scanner)
        else:
            entries.append(_entry(name, *_fields(name, scanner)))
    scanner.finish()
    return entries, metadata


def _digits(text: str) -> int:
    # int() refuses more than 4300 digits with a ValueError of its own; u64 has at most 20.
    if len(text) > 20 or text[0] == "-" or int(text) > _MAX_U64:
        raise JsonError(f"number {text[:40]}, expected a whole number below 2^64")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise JsonError(f"number {text[:40]}, expected a whole number")


# Numbers of 19 digits are below 2^64.
_NUMBER = "(?:0|[1-9][0-9]{0,18})"
# A member in the spelling that the package writes, with its comma, read without the JSON decoder:
# the same, many times faster. Every other spelling goes through the decoder.
_MEMBER = re.compile(
    rf'"((?!__metadata__")[^"\\\x00-\x1f]{{0,{MAX_NAME}}})":\{{'
    rf'("dtype":"([A-Z0-9_]{{1,16}})","shape":\[((?:{_NUMBER},){{0,63}}{_NUMBER})?\]),'
    rf'"data_offsets":\[({_NUMBER}),({_NUMBER})\]\}},'
)
_DECODER = json.JSONDecoder(
    object_pairs_hook=unique, parse_int=_digits, parse_float=_no_number, parse_constant=_no_number
)


def _metadata(scanner: Scanner) -> dict[str, str]:
    if scanner.kind != "an object":
        raise JsonError("__metadata__ is not an object of texts")
    table: dict[str, str] = {}
    for key in scanner.members():
        if scanner.kind != "a text":
            raise JsonError(f"__metadata__[{shown(key)}] is not a text")
        if len(table) == MAX_METADATA:
            raise JsonError(f"__metadata__ has more than {MAX_METADATA} texts")
        table[key] = scanner.string()
    return table


def _entry(name: str, tag: str, shape: tuple[int, ...], begin: int, end: int) -> Entry:
    if tag not in DTYPES:
        raise JsonError(f"tensor {name!r} has the unknown dtype {shown(tag)}")
    if len(shape) > MAX_RANK:
        raise JsonError(f"tensor {name!r} has {len(shape)} dimensions, expected {MAX_RANK} at most")
    dtype = DTYPES[tag]
    bits = _checked_bits(name, shape, dtype)
    if (end - begin) * 8 != bits:
        raise JsonError(
            f"tensor {name!r} of {tag} {list(shape)} needs {bits / 8:g} bytes, "
            f"got data_offsets {[begin, end]}"
        )
    return Entry(sys.intern(name), dtype, shape, begin, end)


def _fields(name: str, scanner: Scanner) -> tuple[str, tuple[int, ...], int, int]:
    if len(name) > MAX_NAME:
        raise JsonError(f"tensor {shown(name)} has a name of over {MAX_NAME} characters")
    if scanner.kind != "an object":
        raise JsonError(f"tensor {name!r} is {scanner.kind}, expected {_EXPECTED}")
    value = scanner.value(_MAX_ENTRY, flat=True)
    if value.keys() != {"dtype", "shape", "data_offsets"}:
        raise JsonError(f"tensor {name!r} has {shown(sorted(value))}, expected {_EXPECTED}")
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(tag, str):
        raise JsonError(f"tensor {name!r} has the unknown dtype {shown(tag)}")
    if not _is_numbers(shape):
        raise JsonError(f"tensor {name!r} has the shape {shown(shape)}, expected whole numbers")
    if not _is_numbers(offsets) or len(offsets) != 2:
        raise JsonError(f"tensor {name!r} has data_offsets {shown(offsets)}, expected [begin, end]")
    return tag, tuple(shape), *offsets


def _is_numbers(value: Any) -> bool:
    # Not isinstance: true and false are of a subclass of int.
    return isinstance(value, list) and all(type(item) is int for item in value)


def _checked_bits(name: str, shape: tuple[int, ...], dtype: DType) -> int:
    bits = 1
    for size in (*shape, dtype.bits):
        bits *= size
        if bits > _MAX_U64:
            raise JsonError(f"tensor {name!r} of shape {list(shape)} overflows 64 bits")
    if bits % 8:
        raise JsonError(f"tensor {name!r} of {dtype} {list(shape)} does not fill whole bytes")
    return bits


def _check_contiguous(entries: list[Entry], data_size: int) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "follows a hole"
            raise JsonError(f"tensor {entry.name!r} starts at {entry.begin}: it {what}")
        position = entry.end
    if position != data_size:
        what = "truncated" if data_size < position else "with bytes no tensor owns"
        raise JsonError(f"the data has {data_size} bytes, the header names {position}: {what}")
