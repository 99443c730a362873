"""Safetensors files near validity, and the comparison of avops and the package on them.

A file is made as a tree of JSON tokens, changed as a tree (numbers, names, spellings, structure),
written with some layout, then changed as bytes. Many changes leave it valid, on purpose.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors

from avops.disk import open_checkpoint
from avops.dtypes import DTYPES
from avops.errors import CheckpointError
from bench.fuzzing.outcome import BOTH, FAILURE, NEITHER, STRICTER, Outcome, Watch, reason, shorten
from bench.fuzzing.tokens import Array, Object, Token, dump, gaps, garble, spelled

# Tensors by name: dtype, shape, bytes.
Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]
Reader = Callable[[Path], Tensors]

SUFFIX = ".safetensors"


# ---- the comparison


def prepare(root: Path) -> Path:
    """Where the files are written: nothing has to be there."""
    return root


def read_avops(path: Path) -> Tensors:
    """The reader under test. Raises CheckpointError for what it refuses."""
    found = {}
    with path.open("rb") as file:
        for name, tensor in open_checkpoint(path).tensors.items():
            file.seek(tensor.offset)
            found[name] = (tensor.dtype.tag, tensor.shape, file.read(tensor.nbytes))
    return found


def read_safetensors(raw: bytes) -> Tensors | None:
    """The package's reading; None when it rejects the file."""
    try:
        tensors: Any = safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in tensors}


def check(
    raw: bytes, directory: Path, reader: Reader | None = None, watch: Watch | None = None
) -> Outcome:
    """What both make of the file ``raw``, which is left in ``directory``.

    An exception that is no CheckpointError is a failure; so is accepting what the package
    rejects, reading something else, and opening another file.
    """
    path = directory / f"input{SUFFIX}"
    path.write_bytes(raw)
    if watch:
        watch.start()
    try:
        ours: Tensors | None = (reader or read_avops)(path)
        why = ""
    except CheckpointError as error:
        ours, why = None, reason(str(error))
    except Exception as error:
        return Outcome(FAILURE, f"raised {type(error).__name__}")
    if watch and set(watch.stop()) != {str(path)}:
        return Outcome(FAILURE, "opened another file")
    theirs = read_safetensors(raw)
    if ours is None:
        return Outcome(NEITHER if theirs is None else STRICTER, why)
    if theirs is None:
        return Outcome(FAILURE, "accepted, but the package rejects it")
    if theirs != ours:
        return Outcome(FAILURE, "accepted, but the package reads something else")
    with safetensors.safe_open(path, "np") as file:
        if set(file.keys()) != set(ours):
            return Outcome(FAILURE, "accepted, but safe_open has other names")
    return Outcome(BOTH, "")


# ---- valid files

_NAMES = (
    "a", "b", "weight", "model.layers.0.w", "é", "日本", "\U0001f600", "", "a b", 'a"b', "\n",
    "a/b", "\x7f", "\x00", "dtype", "shape", "data_offsets", "metadata", "__metadata", "../x",
    "\u2028",
)  # fmt: skip
_COMMON = ("F32", "BF16", "F16", "I64", "U8", "BOOL")
_TAGS = tuple(DTYPES)


def layout(rng: random.Random) -> tuple[Object, int]:
    """A valid table and the size of its data."""
    entries, position = [], 0
    for name in rng.sample(_NAMES, rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 6))):
        dtype = DTYPES[rng.choice(_COMMON if rng.random() < 0.6 else _TAGS)]
        shape = [rng.choice((0, 1, 1, 2, 3, 5, 8)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
        if dtype.bits % 8:
            shape.append(4)  # four elements of 4 or 6 bits are whole bytes
        end = position + math.prod(shape) * dtype.bits // 8
        entries.append([spelled(rng, name), _entry(dtype.tag, shape, position, end)])
        position = end
    if rng.random() < 0.3:
        rng.shuffle(entries)
    if rng.random() < 0.4:
        texts = [[spelled(rng, k), '"pt"'] for k in rng.sample(_NAMES, rng.choice((0, 1, 2)))]
        entries.insert(rng.choice((0, len(entries))), ['"__metadata__"', Object(texts)])
    return Object(entries), position


def _entry(tag: str, shape: list[int], begin: int, end: int) -> Object:
    return Object(
        [
            ['"dtype"', f'"{tag}"'],
            ['"shape"', Array([str(size) for size in shape])],
            ['"data_offsets"', Array([str(begin), str(end)])],
        ]
    )


# ---- changes to the tree

_ODD = (
    "-1", "-0", "00", "01", "1.0", "1e0", "1E2", "0.5", "1e400", "-1e400", "NaN", "Infinity",
    "true", "null", '"1"', "[]", "{}", "[1]", "4294967296", "9223372036854775807",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "9" * 40,
    "9" * 5000, "0x1", "+1", "1_0", "١",
)  # fmt: skip
_JUNK = (
    "null", "true", "false", "0", "1", "-1", '""', '"x"', "[]", "{}", "[[]]", '{"a":1}', "[" * 200,
    "[" * 150 + "]" * 150, '"\\ud800"', '"\x01"', '"\\x"', '"' + "y" * 5000 + '"', "", "nul", "'a'",
)  # fmt: skip
_KEYS = (
    '"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"\\u005f_metadata__"', '"a"',
    '"\\u0061"', '"b"', '""', '"\\ud800"', '"\\udc00\\ud800"', '"Dtype"', '"x"', '"d\\u0074ype"',
)  # fmt: skip
_DTYPES = (
    '"F33"', '"f32"', '"F32 "', '""', "0", "null", '["F32"]', '{"F32":null}', '"F\\u00332"',
    '"bool"',
)  # fmt: skip


def _containers(token: Token, found: list[Object | Array]) -> list[Object | Array]:
    if not isinstance(token, str):
        found.append(token)
        values: list[Any] = token.items
        for item in values:
            _containers(item[1] if isinstance(token, Object) else item, found)
    return found


def _entries(table: Object) -> list[Object]:
    """The tensors' objects that still have the three fields with lists in them."""
    return [
        value
        for _, value in table.items
        if isinstance(value, Object)
        and len(value.items) >= 3
        and all(isinstance(value.items[i][1], Array) for i in (1, 2))
    ]


def _is_short(text: str) -> bool:
    return text.isdecimal() and len(text) < 100


def _number(rng: random.Random, table: Object) -> None:
    arrays = [token for token in _containers(table, []) if isinstance(token, Array) and token.items]
    if not arrays:
        return
    array = rng.choice(arrays)
    at = rng.randrange(len(array.items))
    old = array.items[at]
    if isinstance(old, str) and _is_short(old) and rng.random() < 0.6:
        change = rng.choice((-1, 1, -4, 4, 2**32, 2**64, int(old), -int(old)))
        array.items[at] = str(int(old) + change)
    else:
        array.items[at] = rng.choice(_ODD)


def _resize(rng: random.Random, table: Object) -> None:
    arrays = [token for token in _containers(table, []) if isinstance(token, Array)]
    if not arrays:
        return
    array = rng.choice(arrays)
    kind = rng.random()
    if kind < 0.4:  # a dimension of 1 changes nothing
        array.items.insert(rng.randint(0, len(array.items)), "1")
    elif kind < 0.6:
        array.items.insert(rng.randint(0, len(array.items)), rng.choice(("0", "2", *_ODD)))
    elif kind < 0.7:
        array.items.extend(["1"] * rng.choice((60, 64, 65, 200)))
    elif array.items and kind < 0.85:
        del array.items[rng.randrange(len(array.items))]
    else:
        rng.shuffle(array.items)


def _member(rng: random.Random, table: Object) -> None:
    objects = [t for t in _containers(table, []) if isinstance(t, Object) and t.items]
    if not objects:
        return
    items = rng.choice(objects).items
    at = rng.randrange(len(items))
    kind = rng.random()
    if kind < 0.2:
        items.insert(rng.randint(0, len(items)), list(items[at]))
    elif kind < 0.35:
        del items[at]
    elif kind < 0.5:
        items[at][0] = rng.choice((*_KEYS, *_JUNK))
    elif kind < 0.65:
        items[at][1] = rng.choice(_JUNK)
    elif kind < 0.75:
        items.append([rng.choice(_KEYS), rng.choice(_JUNK)])
    else:
        rng.shuffle(items)


def _respell(rng: random.Random, table: Object) -> None:
    objects = [t for t in _containers(table, []) if isinstance(t, Object) and t.items]
    if objects:
        member = rng.choice(rng.choice(objects).items)
        try:
            key = json.loads(member[0])
            member[0] = spelled(rng, key if isinstance(key, str) else repr(key))
        except ValueError:
            member[0] += rng.choice(("", " ", '"'))


def _dtype(rng: random.Random, table: Object) -> None:
    entries = _entries(table)
    if entries:
        tag = f'"{rng.choice(_TAGS)}"' if rng.random() < 0.7 else rng.choice(_DTYPES)
        rng.choice(entries).items[0][1] = tag


def _offsets(rng: random.Random, table: Object) -> None:
    """Move one tensor, all that follow, or exchange two."""
    ranges = [e.items[2][1].items for e in _entries(table)]
    ranges = [r for r in ranges if len(r) == 2 and all(isinstance(x, str) for x in r)]
    if not ranges:
        return
    if rng.random() < 0.3:
        first, second = rng.choice(ranges), rng.choice(ranges)
        first[:], second[:] = second[:], first[:]
        return
    by = rng.choice((-8, -4, -1, 1, 4, 8, 2**32, 2**63))
    some = ranges[rng.randrange(len(ranges)) :]
    for one in some if rng.random() < 0.5 else some[:1]:
        one[:] = [str(int(x) + by) if _is_short(x) else x for x in one]


def _metadata(rng: random.Random, table: Object) -> None:
    value = rng.choice(
        (
            Object([]), Object([['"k"', '"v"']]), Object([['"k"', rng.choice(_JUNK)]]),
            Object([['"k"', '"v"'], ['"k"', '"w"']]), rng.choice(_JUNK),
            Object([[f'"{i}"', '""'] for i in range(100)]),
        )
    )  # fmt: skip
    table.items.insert(rng.randint(0, len(table.items)), ['"__metadata__"', value])


def _wrap(rng: random.Random, table: Object) -> None:
    if table.items:
        member = rng.choice(table.items)
        kind = rng.random()
        if kind < 0.4 and isinstance(member[1], Object):
            member[1] = Array([value for _, value in member[1].items])
        elif kind < 0.7:
            member[1] = Array([member[1]])
        else:
            member[1] = Object([[rng.choice(_KEYS), member[1]]])


_TREE = (
    _number, _number, _number, _resize, _resize, _member, _member, _respell, _respell, _dtype,
    _dtype, _offsets, _offsets, _metadata, _wrap,
)  # fmt: skip


def assemble(text: bytes, data: bytes, length: int | None = None) -> bytes:
    """A file whose first 8 bytes say ``length``, by default that of the header's text."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def generate(rng: random.Random) -> bytes:
    """One file."""
    table, size = layout(rng)
    kind = rng.random()
    if 0.4 <= kind < 0.85:
        for _ in range(rng.choice((1, 1, 2, 3))):
            rng.choice(_TREE)(rng, table)
    gap = gaps(rng)
    text = dump(table, gap).encode("utf-8", "surrogatepass")
    if kind >= 0.85:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            text = garble(rng, text, lambda: dump(layout(rng)[0], gap).encode())
    if rng.random() < 0.2:
        text += b" " * rng.randint(1, 8)
    length, data = len(text), rng.randbytes(size)
    if rng.random() < 0.06:
        length = rng.choice((0, 1, 7, length - 1, length + 1, length + size, 2**63, 2**64 - 1))
    if rng.random() < 0.05:
        data = rng.choice((data[:-1], data + b"x", b"", data + bytes(100)))
    raw = assemble(text, data, max(length, 0))
    return raw[: rng.randint(0, len(raw))] if rng.random() < 0.02 else raw


def minimise(raw: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """A smaller file that still fails; how far the stated length is off stays as it is."""
    if len(raw) < 8:
        return raw
    (stated,) = struct.unpack("<Q", raw[:8])
    length = min(stated, len(raw) - 8)
    off, text, data = stated - length, raw[8 : 8 + length], raw[8 + length :]

    def built(text: bytes, data: bytes) -> bytes:
        return assemble(text, data, len(text) + off)

    text = shorten(text, lambda shorter: fails(built(shorter, data)))
    data = shorten(data, lambda shorter: fails(built(text, shorter)))
    return built(text, data)
