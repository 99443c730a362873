"""The header parser: attacks, and agreement with the safetensors package."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from avops.disk import encode_header, open_checkpoint, parse_header, parse_length
from avops.disk.header import MAX_METADATA, MAX_NAME
from avops.dtypes import DTYPES
from avops.errors import CheckpointError


def parse(table: Any, data: int, raw: str | None = None) -> Any:
    text = raw if raw is not None else json.dumps(table)
    return parse_header(text.encode("utf-8", "surrogatepass"), data, "file")


def tensor(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_accepts_a_plain_header() -> None:
    header = parse({"b": tensor(8, 12), "a": tensor(0, 8), "__metadata__": {"format": "pt"}}, 12)
    assert [entry.name for entry in header.entries] == ["a", "b"]
    assert header.metadata == {"format": "pt"}


ATTACKS: list[tuple[str, Any, int, str]] = [
    ("hole", {"a": tensor(4, 8)}, 8, "'a' starts at 4: it follows a hole"),
    ("overlap", {"a": tensor(0, 8), "b": tensor(4, 8)}, 8, "'b' starts at 4: it overlaps"),
    ("truncated", {"a": tensor(0, 8)}, 4, "truncated"),
    ("trailing bytes", {"a": tensor(0, 8)}, 9, "bytes no tensor owns"),
    ("reversed", {"a": tensor(8, 0, shape=[2])}, 8, "needs .* got data_offsets"),
    ("wrong size", {"a": tensor(0, 8, shape=[3])}, 8, "needs 12 bytes"),
    ("unknown dtype", {"a": tensor(0, 8, dtype="F33")}, 8, "unknown dtype 'F33'"),
    ("dtype not text", {"a": {"dtype": 1, "shape": [], "data_offsets": [0, 4]}}, 4, "dtype 1"),
    ("missing field", {"a": {"dtype": "F32", "shape": []}}, 4, "expected dtype, shape and"),
    ("extra field", {"a": {**tensor(0, 4), "x": 1}}, 4, "expected dtype, shape and"),
    ("not an object", {"a": [1]}, 4, "'a' is a list"),
    ("bool in shape", {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4, "shape"),
    ("shape not list", {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, 4, "shape 1"),
    ("three offsets", {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4, 4]}}, 4, "offset"),
    ("overflow", {"a": tensor(0, 0, shape=[2**40, 2**40, 0])}, 0, "overflows 64 bits"),
    ("metadata list", {"__metadata__": []}, 0, "__metadata__ is not an object"),
    ("metadata number", {"__metadata__": {"a": 1}}, 0, r"__metadata__\['a'\] is not a text"),
    ("half bytes", {"a": tensor(0, 1, dtype="F4", shape=[1])}, 1, "does not fill whole bytes"),
]


@pytest.mark.parametrize(
    ("table", "data", "message"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS]
)
def test_refuses_malformed_tables(table: Any, data: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse(table, data)


@pytest.mark.parametrize(
    ("table", "data", "message"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS]
)
def test_refuses_them_in_the_packages_spelling(table: Any, data: int, message: str) -> None:
    """Which is read another way; the last member never is, so it is an empty one."""
    end = {"truncated": 8, "bytes no tensor owns": 8}.get(message, data)
    table = {**table, "zz": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}}
    with pytest.raises(CheckpointError, match=message):
        parse(None, data, json.dumps(table, separators=(",", ":")))


PLAIN = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
LAST = '"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'
SPELLED = {
    "comma before the end": (PLAIN + LAST + ",", "expected a string"),
    "nothing after a comma": (PLAIN, "expected a string"),
    "twice": (PLAIN + PLAIN + LAST, "duplicate key 'a'"),
    "twice, the second with spaces": (PLAIN + PLAIN.replace(":", ": ") + LAST, "duplicate key 'a'"),
    "metadata like a tensor": (
        PLAIN.replace('"a"', '"__metadata__"') + LAST,
        r"__metadata__\['shape'\] is not a text",
    ),
    "a shape that others have, too": (
        PLAIN + LAST.replace("4,8", "4,12") + "," + PLAIN.replace("a", "c"),
        r"'b' of F32 \[1\] needs 4 bytes, got data_offsets \[4, 12\]",
    ),
    "another size of a known shape": (
        PLAIN + LAST.replace("4,8", "4,12") + ',"c":{}',
        r"'b' of F32 \[1\] needs 4 bytes, got data_offsets \[4, 12\]",
    ),
    "a long name": (
        PLAIN.replace("a", "a" * (MAX_NAME + 1), 1) + LAST,
        f"has a name of over {MAX_NAME} characters",
    ),
    "a number of twenty digits": (PLAIN.replace("[0,", "[99999999999999999999,") + LAST, r"2\^64"),
    "a leading zero": (PLAIN.replace("[0,", "[00,") + LAST, "not JSON"),
    "a control character": (PLAIN.replace('"a"', '"a\x01"') + LAST, "control character"),
}


@pytest.mark.parametrize("case", SPELLED)
def test_refuses_what_is_nearly_the_packages_spelling(case: str) -> None:
    text, message = SPELLED[case]
    with pytest.raises(CheckpointError, match=message):
        parse(None, 8, "{" + text + "}")


def test_spellings_may_be_mixed() -> None:
    middle = '"b" : {"data_offsets":[4,8], "dtype":"F32","shape":[1]} , '
    text = "{" + PLAIN + '"__metadata__":{"k":"v"},' + middle + PLAIN.replace('"a"', '"c"')
    text = text.replace('"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},', "")
    text += '"d\\u0061":{"dtype":"I8","shape":[2,2],"data_offsets":[8,12]} }'
    header = parse(None, 12, text)
    assert [tuple(entry) for entry in header.entries] == [
        ("a", DTYPES["F32"], (1,), 0, 4),
        ("b", DTYPES["F32"], (1,), 4, 8),
        ("da", DTYPES["I8"], (2, 2), 8, 12),
    ]
    assert header.metadata == {"k": "v"}


def test_more_shapes_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avops.disk.header._MAX_KINDS", 2)
    table, at = {}, 0
    for i in range(12):
        size = 4 * (i % 5)
        table[f"t{i}"] = tensor(at, at + size)
        at += size
    header = parse(None, at, json.dumps(table, separators=(",", ":")))
    assert {e.name: tensor(e.begin, e.end) for e in header.entries} == table
    assert all(entry.shape == ((entry.end - entry.begin) // 4,) for entry in header.entries)


ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
RAW: list[tuple[str, str, str]] = [
    ("duplicate tensor", ONE + "," + ONE[1:] + "}", "duplicate key 'a'"),
    ("duplicate field", '{"a":{"dtype":"F32","dtype":"F32"}}', "duplicate key 'dtype'"),
    ("negative", '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "number -1"),
    ("negative zero", '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', "number -0"),
    ("float", '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "number 1.0"),
    ("NaN", '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', "number NaN"),
    ("huge", '{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}', "2^64"),
    (
        "5000 digits",
        '{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}',
        "2^",
    ),
    ("lone surrogate", '{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "Unicode"),
    ("deep", '{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply|expected dtype"),
    ("leading space", " " + ONE + "}", r"does not start with '\{'"),
    ("not JSON", "{", "not JSON"),
    ("two values", ONE + "}{}", "not JSON"),
    ("control character", ONE.replace("a", "\x01") + "}", "not JSON"),
]


@pytest.mark.parametrize(("raw", "message"), [r[1:] for r in RAW], ids=[r[0] for r in RAW])
def test_refuses_malformed_text(raw: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message.replace("^", r"\^")):
        parse(None, 4, raw)


def test_refuses_invalid_utf8() -> None:
    with pytest.raises(CheckpointError, match="not UTF-8"):
        parse_header(b'{"\xff":1}', 0, "file")


@pytest.mark.parametrize(
    ("prefix", "size", "message"),
    [
        (b"", 0, "0 bytes, expected at least 8"),
        (b"1234567", 7, "7 bytes"),
        (struct.pack("<Q", 100_000_001), 2**40, "expected at most 100000000"),
        (struct.pack("<Q", 2**63), 2**40, "expected at most"),
        (struct.pack("<Q", 100), 50, "truncated"),
    ],
)
def test_refuses_bad_lengths(prefix: bytes, size: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_length(prefix, size, "file")


def test_every_dtype_of_the_package_is_known(tmp_path: Path) -> None:
    # The package lists its dtypes when it meets one that it does not know.
    path = tmp_path / "x.safetensors"
    text = b'{"a":{"dtype":"X","shape":[],"data_offsets":[0,0]}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(safetensors.SafetensorError) as error:
        safetensors.safe_open(path, "np")
    listed = {word.strip("` ,.") for word in str(error.value).split("expected one of")[1].split()}
    listed = {word for word in listed if word.isupper() or word[:1] in "FIUBC"} - {""}
    assert {tag for tag in listed if tag in DTYPES} == {t for t in listed if t[:1] in "BFIUC"}
    assert listed >= set(DTYPES)


# ---- property: what we accept, the package accepts, with the same tensors

NUMBERS = st.one_of(st.integers(0, 40), st.sampled_from([2**31, 2**63, 2**64 - 1, 2**64]))
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F99"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    }
)
TABLES = st.dictionaries(st.text(max_size=3), FIELDS, max_size=3)


@st.composite
def layouts(draw: st.DrawFn, *, valid: bool) -> tuple[bytes, bytes]:
    """(header, data): contiguous tensors listed in any order, with random bytes.

    valid: at least two tensors have values, and every one fills whole bytes.
    """
    table: dict[str, Any] = {}
    position = 0
    least, size = (2, st.integers(1, 4)) if valid else (0, st.integers(0, 5))
    for name in draw(st.lists(st.text(max_size=4), unique=True, min_size=least, max_size=4)):
        dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
        shape = draw(st.lists(size, max_size=3))
        if valid and dtype.bits % 8:
            shape.append(4)  # four elements of 4 or 6 bits are whole bytes
        if valid and len(table) >= least and draw(st.booleans()):
            shape.append(0)
        nbytes = math.prod(shape) * dtype.bits // 8
        offsets = [position, position + nbytes]
        table[name] = {"dtype": dtype.tag, "shape": shape, "data_offsets": offsets}
        position += nbytes
    table = dict(draw(st.permutations(list(table.items()))))
    text = json.dumps(table, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return text, random.Random(draw(st.integers(0, 2**32))).randbytes(position)


@st.composite
def nearly_valid(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A layout, then sometimes one change."""
    text, data = draw(layouts(valid=False))
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.binary(max_size=3)) + text[cut + draw(st.integers(0, 3)) :]
    data = draw(st.sampled_from([data, data, data, data + b"x", data[:-1]]))
    return text + b" " * draw(st.integers(0, 3)), data


def both(path: Path, text: bytes, data: bytes) -> bool:
    """Whether we accept it; then the package does, with the same tensors."""
    raw = struct.pack("<Q", len(text)) + text + data
    path.write_bytes(raw)
    try:
        ours = open_checkpoint(path)
    except CheckpointError:
        return False
    theirs = dict(safetensors.deserialize(raw))
    assert set(theirs) == set(ours.tensors)
    for name, tensor in ours.tensors.items():
        assert theirs[name]["dtype"] == tensor.dtype.tag
        assert tuple(theirs[name]["shape"]) == tensor.shape
        assert bytes(theirs[name]["data"]) == raw[tensor.offset : tensor.offset + tensor.nbytes]
    return True


HEALTH = [HealthCheck.function_scoped_fixture]


@settings(max_examples=300, deadline=None, suppress_health_check=HEALTH)
@given(case=layouts(valid=True))
def test_valid_layouts_are_accepted_with_the_packages_tensors(
    tmp_path: Path, case: tuple[bytes, bytes]
) -> None:
    assert both(tmp_path / "x.safetensors", *case)


@settings(max_examples=400, deadline=None, suppress_health_check=HEALTH)
@given(case=nearly_valid())
def test_what_we_accept_the_package_accepts(tmp_path: Path, case: tuple[bytes, bytes]) -> None:
    event("accepted" if both(tmp_path / "x.safetensors", *case) else "refused")


@settings(max_examples=200, deadline=None, suppress_health_check=HEALTH)
@given(table=TABLES, size=st.integers(0, 64))
def test_random_tables_never_widen(tmp_path: Path, table: dict, size: int) -> None:
    both(tmp_path / "x.safetensors", json.dumps(table).encode(), bytes(size))


@settings(max_examples=200, deadline=None, suppress_health_check=HEALTH)
@given(raw=st.binary(max_size=200))
def test_random_bytes_never_crash(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


TORCH_DTYPES = ["float32", "bfloat16", "float16", "int64", "uint8", "bool", "float8_e4m3fn"]


@settings(max_examples=100, deadline=None, suppress_health_check=HEALTH)
@given(
    tensors=st.dictionaries(
        st.text(max_size=4),
        st.tuples(st.sampled_from(TORCH_DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    )
)
def test_what_the_package_writes_we_accept(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int]]]
) -> None:
    made = {name: torch.zeros(s, dtype=getattr(torch, d)) for name, (d, s) in tensors.items()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save(made))
    ours = open_checkpoint(path).tensors
    assert {n: (t.dtype.torch, list(t.shape)) for n, t in ours.items()} == tensors


def test_as_many_texts_of_metadata_as_are_allowed() -> None:
    texts = ",".join(f'"{n}":""' for n in range(MAX_METADATA))
    found = parse_header(f'{{"__metadata__":{{{texts}}}}}'.encode(), 0, "file")
    assert len(found.metadata) == MAX_METADATA
    with pytest.raises(CheckpointError, match=f"__metadata__ has more than {MAX_METADATA} texts"):
        parse_header(f'{{"__metadata__":{{{texts},"one more":""}}}}'.encode(), 0, "file")


def test_a_name_may_be_as_long_as_is_allowed() -> None:
    name = "n" * MAX_NAME
    text = f'{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}'
    assert parse_header(text.encode(), 1, "file").entries[0].name == name


def test_encoded_headers_round_trip() -> None:
    shapes = [("é", DTYPES["BF16"], (3, 5)), ("b", DTYPES["F32"], ()), ("c", DTYPES["I64"], (0,))]
    shapes += [("d", DTYPES["F4"], (3, 2)), ("e", DTYPES["U8"], (1,))]
    prefix, offsets = encode_header(shapes, {"k": "v"})
    assert len(prefix) % 4096 == 0
    header = parse_header(prefix[8:], 38, "file")
    assert [(e.name, e.dtype, e.shape) for e in header.entries] == shapes
    assert {e.name: header.data_start + e.begin for e in header.entries} == offsets
    assert header.metadata == {"k": "v"}
