"""Safetensors files that somebody made to break a reader, each with the verdict that it deserves.

An attack is a header and a data buffer, or a function that writes the file. ``refused`` is the
pattern of the message; None marks what looks strange and is legal. The legal ones must come out as
the safetensors package reads them; what the package rejects must never be accepted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT = 100_000_000
DEEP = 100_000


@dataclass(frozen=True)
class Attack:
    """One file: written by ``write`` if given, else made of ``header`` and ``data``.

    length: what the first 8 bytes say; default the header's length.
    """

    name: str
    refused: str | None
    header: bytes = b""
    data: bytes = bytes(4)
    length: int | None = None
    write: Callable[[Path], None] | None = None

    def make(self, path: Path) -> None:
        if self.write:
            self.write(path)
        else:
            length = len(self.header) if self.length is None else self.length
            path.write_bytes(struct.pack("<Q", length) + self.header + self.data)


def entry(dtype: str = '"F32"', shape: str = "[1]", offsets: str = "[0,4]") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def members(*pairs: tuple[str, str]) -> bytes:
    """An object of raw JSON keys and values."""
    text = ",".join(f"{key}:{value}" for key, value in pairs)
    return f"{{{text}}}".encode("utf-8", "surrogatepass")


def one(name: str = '"a"', **fields: str) -> bytes:
    """A header of one tensor with some fields replaced by raw JSON."""
    return members((name, entry(**fields)))


def two(first: str, second: str, shapes: tuple[str, str] = ("[1]", "[1]")) -> bytes:
    """A header of two F32 tensors with these offsets."""
    return members(
        ('"a"', entry(shape=shapes[0], offsets=first)),
        ('"b"', entry(shape=shapes[1], offsets=second)),
    )


def meta(text: str) -> bytes:
    return members(('"__metadata__"', text), ('"a"', entry()))


def fields(text: str) -> bytes:
    """A header of one tensor whose object holds ``text``."""
    return f'{{"a":{{{text}}}}}'.encode()


ONE = one()
SHAPE_BOMB = "[" + ",".join(["4294967296"] * 8) + "]"

PREFIXES = [
    Attack("empty file", "0 bytes, expected at least 8", write=lambda p: p.write_bytes(b"")),
    Attack("seven bytes", "7 bytes, expected at", write=lambda p: p.write_bytes(bytes(7))),
    Attack("length 0 and nothing else", "does not start", data=b"", length=0),
    Attack("length 0 before a header", "does not start", ONE, length=0),
    Attack("length 1", "not JSON", b"{", b"", length=1),
    Attack("length 7 of a longer header", "not JSON", ONE, length=7),
    Attack("length one short", "not JSON", ONE, length=len(ONE) - 1),
    Attack("length one long", "something after the end|truncated", ONE, length=len(ONE) + 1),
    Attack("length one beyond the file", "truncated", ONE, b"", length=len(ONE) + 1),
    Attack("length of the file", "truncated", ONE, length=len(ONE) + 12),
    Attack("length 2^31", "length 2147483648, expected at most", ONE, length=2**31),
    Attack("length 2^63", "length 9223372036854775808, expected", ONE, length=2**63),
    Attack("length 2^64 - 1", "length 18446744073709551615, exp", ONE, length=2**64 - 1),
    Attack("length 2^64 - 8 wraps to 0", "expected at most", ONE, length=2**64 - 8),
    Attack("length big-endian", "expected at most", ONE, length=len(ONE) << 56),
    Attack("length above the limit", "length 100000001, expected at most", ONE, length=LIMIT + 1),
    Attack("length at the limit, file too short", "truncated", ONE, length=LIMIT),
]

ENCODINGS = [
    Attack("not UTF-8", r"not UTF-8 \(byte 2\)", b'{"\xff":' + entry().encode() + b"}"),
    Attack("overlong slash", "not UTF-8", b'{"\xc0\xaf":' + entry().encode() + b"}"),
    Attack("UTF-8 surrogate", "not UTF-8", one('"\ud800"')),
    Attack("beyond Unicode", "not UTF-8", b'{"\xf5\x80\x80\x80":' + entry().encode() + b"}"),
    Attack("cut in a character", "not UTF-8", b'{"\xc3'),
    Attack("byte order mark", "does not start", b"\xef\xbb\xbf" + ONE),
    Attack("UTF-16", "does not start", ONE.decode().encode("utf-16")),
    Attack("UTF-16 without a mark", "not JSON", ONE.decode().encode("utf-16-le")),
    Attack("UTF-32", "not JSON", ONE.decode().encode("utf-32-le")),
    Attack("all zero", "does not start", bytes(64)),
    Attack("lone high surrogate", "not valid Unicode", one('"\\ud800"')),
    Attack("lone low surrogate", "not valid Unicode", one('"\\udfff"')),
    Attack("surrogates swapped", "not valid Unicode", one('"\\udc00\\ud800"')),
    Attack("surrogate in metadata", "not valid Unicode", meta('{"k":"\\ud800"}')),
    Attack("surrogate in a metadata key", "not valid Unicode", meta('{"\\ud800":"v"}')),
    Attack("surrogate pair", None, one('"\\ud83d\\ude00"')),
    Attack("noncharacter", None, one('"\\uffff"')),
    Attack("NUL in a name, escaped", None, one('"a\\u0000b"')),
    Attack("NUL in a name, raw", "not JSON", one('"a\0b"')),
    Attack("newline in a name, raw", "not JSON", one('"a\nb"')),
    Attack("terminal codes in a name", None, one('"\\u001b[31mred"')),
    Attack("right-to-left mark in a name", None, one('"a\u202eb"')),
    Attack("invalid escape", "not JSON", one('"\\x41"')),
    Attack("half an escape", "not JSON", one('"\\u00"')),
    Attack("empty name", None, one('""')),
    Attack("name of two spellings", "duplicate key 'a'", members(
        ('"a"', entry()), ('"\\u0061"', entry(shape="[0]", offsets="[4,4]")))),
    Attack("names that normalise alike", None, members(
        ('"\u00e9"', entry()), ('"e\u0301"', entry(shape="[0]", offsets="[4,4]")))),
    Attack("name with ../", None, one('"../../etc/passwd"')),
    Attack("name that is a path", None, one('"/etc/passwd"')),
    Attack("name of 4096 characters", None, one(f'"{"n" * 4096}"')),
    Attack("name of 5000 characters", "name of over 4096", one(f'"{"n" * 5000}"')),
]  # fmt: skip

SYNTAX = [
    Attack("leading space", "does not start", b" " + ONE),
    Attack("spaces behind", None, ONE + b" " * 100),
    Attack("white space everywhere", None, ONE.replace(b":", b" \t:\r\n ").replace(b",", b"\n, ")),
    Attack("form feed as white space", "something after the end", ONE + b"\f"),
    Attack("no-break space", "something after the end", ONE + "\u00a0".encode()),
    Attack("NUL behind", "something after the end", ONE + b"\0"),
    Attack("garbage behind", "something after the end", ONE + b"x"),
    Attack("second object behind", "something after the end", ONE + b"{}"),
    Attack("empty object", None, b"{}", b""),
    Attack("empty object with data", "bytes no tensor owns", b"{}"),
    Attack("array", "does not start", b"[]", b""),
    Attack("number", "does not start", b"1", b""),
    Attack("null", "does not start", b"null", b""),
    Attack("only an open brace", "not JSON", b"{"),
    Attack("unterminated", "not JSON", ONE[:-1]),
    Attack("unterminated entry", "not JSON", ONE[:-2]),
    Attack("unterminated string", "not JSON", b'{"a'),
    Attack("trailing comma", "not JSON", ONE[:-1] + b",}"),
    Attack("leading comma", "not JSON", b"{," + ONE[1:]),
    Attack("two commas", "not JSON", two("[0,4]", "[4,8]").replace(b'},"', b'},,"')),
    Attack("semicolon", "not JSON", two("[0,4]", "[4,8]").replace(b'},"', b'};"')),
    Attack("no colon", "not JSON", b'{"a" ' + entry().encode() + b"}"),
    Attack("single quotes", "not JSON", ONE.replace(b'"', b"'")),
    Attack("bare name", "not JSON", one("a")),
    Attack("comment", "not JSON", b"{/*x*/" + ONE[1:]),
    Attack("value missing", "a number, expected dtype", b'{"a":}'),
    Attack("entry is an array", "is a list, expected", members(('"a"', '["F32",[1],[0,4]]'))),
    Attack("entry is null", "is null, expected", members(('"a"', "null"))),
    Attack("entry is text", "is a text, expected", members(('"a"', '"F32"'))),
    Attack("entry is true", "is true, expected", members(('"a"', "true"))),
    Attack("entry is empty", r"has \[\], expected", fields("")),
    Attack("field missing", "expected dtype, shape", fields('"dtype":"F32","shape":[1]')),
    Attack("field too many", "expected dtype", fields(entry()[1:-1] + ',"x":1')),
    Attack("field in capitals", "expected dtype", ONE.replace(b"dtype", b"DTYPE")),
    Attack("fields in any order", None,
           fields('"data_offsets":[0,4],"shape":[1],"dtype":"F32"')),
    Attack("fields with escapes", None, ONE.replace(b"dtype", b"d\\u0074ype")),
    Attack("100,000 brackets deep in a tensor", "is a list", b'{"a":' + b"[" * DEEP),
    Attack("100,000 objects deep in a tensor", "nested too deeply|longer than",
           b'{"a":' + b'{"a":' * DEEP),
    Attack("9,000 brackets deep in a shape", "nested too deeply",
           one(shape="[" * 4500 + "]" * 4500)),
    Attack("100,000 brackets deep in a shape", "longer than 10000|too deep",
           one(shape="[" * DEEP + "]" * DEEP)),
    Attack("100,000 brackets deep in metadata", "is not a text",
           meta('{"k":' + "[" * DEEP + "]" * DEEP + "}")),
    Attack("100,000 objects deep at the top", r"\['__metadata__'\] is not a text",
           b'{"__metadata__":' * DEEP),
]  # fmt: skip

DUPLICATES = [
    Attack("same tensor twice", "duplicate key 'a'", members(('"a"', entry()), ('"a"', entry()))),
    Attack("same tensor twice, second empty", "duplicate key 'a'", members(
        ('"a"', entry()), ('"a"', entry(shape="[0]", offsets="[4,4]")))),
    Attack("dtype twice", "duplicate key 'dtype'", fields('"dtype":"F32",' + entry()[1:-1])),
    Attack("shape twice", "duplicate key 'shape'", fields('"shape":[1],' + entry()[1:-1])),
    Attack("offsets twice", "duplicate key 'data_",
           fields(entry()[1:-1] + ',"data_offsets":[0,4]')),
    Attack("metadata twice", "duplicate key '__meta", members(
        ('"__metadata__"', "{}"), ('"__metadata__"', "{}"), ('"a"', entry()))),
    Attack("metadata in two spellings", "duplicate key '__meta", members(
        ('"__metadata__"', "{}"), ('"\\u005f_metadata__"', '{"k":"v"}'), ('"a"', entry()))),
    Attack("metadata key twice", "duplicate key 'k'", meta('{"k":"1","k":"2"}')),
    Attack("metadata key in two spellings", "duplicate key 'k'", meta('{"k":"1","\\u006b":"2"}')),
]  # fmt: skip

METADATA = [
    Attack("metadata null", "not an object of texts", meta("null")),
    Attack("metadata list", "not an object of texts", meta("[]")),
    Attack("metadata text", "not an object of texts", meta('"x"')),
    Attack("metadata of a number", r"\['k'\] is not a text", meta('{"k":1}')),
    Attack("metadata of null", r"\['k'\] is not a text", meta('{"k":null}')),
    Attack("metadata of an object", r"\['k'\] is not a text", meta('{"k":{}}')),
    Attack("metadata like a tensor", r"\['dtype'\] is not a text|not a text", meta(
        '{"shape":[1],"dtype":"F32","data_offsets":[0,4]}')),
    Attack("metadata empty", None, meta("{}")),
    Attack("metadata key empty", None, meta('{"":""}')),
    Attack("metadata of 1 MB", None, meta(f'{{"k":"{"v" * 1_000_000}"}}')),
    Attack("metadata of 70,000 texts", "more than 65536", meta(
        json.dumps({str(i): "" for i in range(70_000)}))),
    Attack("metadata alone", None, b'{"__metadata__":{"format":"pt"}}', b""),
    Attack("metadata spelled with an escape", None, members(
        ('"\\u005f_metadata__"', '{"k":"v"}'), ('"a"', entry()))),
    Attack("tensor named like metadata", "tensor '_", members(
        ('"_\\u005fmetadata___"', '{"k":"v"}'))),
]  # fmt: skip

NUMBERS = [
    Attack(f"shape [{text[:24]}]", pattern, one(shape=f"[{text}]"))
    for text, pattern in [
        ('"1"', "expected whole numbers"), ("1.0", "number 1.0"), ("1e0", "number 1e0"),
        ("0.1e1", "number 0.1e1"), ("-1", "number -1"), ("-0", "number -0"), ("+1", "not JSON"),
        ("01", "not JSON"), ("0x1", "not JSON"), ("1_0", "not JSON"), ("1e400", "number 1e400"),
        ("1e", "not JSON"), (".5", "not JSON"), ("1.", "not JSON"), ("NaN", "number NaN"),
        ("Infinity", "number Infinity"), ("-Infinity", "number -Infinity"),
        ("true", "expected whole numbers"), ("null", "expected whole numbers"),
        ("[1]", "expected whole numbers"), ("{}", "not JSON|expected whole"), ("١", "not JSON"),
        ("18446744073709551616", "below 2^64"), ("18446744073709551615", "overflows 64 bits"),
        ("9" * 5000, "below 2^64"), ("1,", "not JSON"), (",1", "not JSON"), ("1 1", "not JSON"),
    ]
] + [
    Attack(f"data_offsets {text}", pattern, one(offsets=text))
    for text, pattern in [
        ("[0]", "begin, end"), ("[]", "begin, end"), ("[0,4,4]", "begin, end"),
        ("4", "begin, end"), ("null", "begin, end"), ('["0","4"]', "begin, end"),
        ("[0.0,4.0]", "number 0.0"), ("[-0,4]", "number -0"), ("[false,4]", "begin, end"),
        ("[0,1e1]", "number 1e1"), ("[[0],[4]]", "begin, end"), ("[0,3]", "needs 4 bytes"),
        ("[0,5]", "needs 4 bytes"), ("[4,0]", "needs 4 bytes"), ("[-4,0]", "number -4"),
        ("[18446744073709551612,18446744073709551616]", "below 2^64"),
        ("[18446744073709551611,18446744073709551615]", "follows a hole"),
    ]
]  # fmt: skip

DTYPES = [
    Attack(f"dtype {text[:24]} {shape} {len(text)}", pattern,
           one(dtype=text, shape=shape, offsets=f"[0,{n}]"), bytes(n))
    for text, shape, n, pattern in [
        ('"F33"', "[1]", 4, "unknown dtype 'F33'"), ('"f32"', "[1]", 4, "unknown dtype 'f32'"),
        ('""', "[1]", 4, "unknown dtype ''"), ('" F32"', "[1]", 4, "unknown dtype"),
        ('"float32"', "[1]", 4, "unknown dtype"), ('"O"', "[1]", 4, "unknown dtype"),
        ('{"F32":null}', "[1]", 4, "not JSON|unknown dtype"), ('["F32"]', "[1]", 4, "dtype"),
        ("null", "[1]", 4, "unknown dtype None"), ("32", "[1]", 4, "unknown dtype 32"),
        ('"F\\u00332"', "[1]", 4, None), ('"F4"', "[1]", 1, "whole bytes"),
        ('"F4"', "[3]", 2, "whole bytes"), ('"F4"', "[3,2]", 3, None),
        ('"F6_E2M3"', "[3]", 3, "whole bytes"), ('"F6_E3M2"', "[4]", 3, None),
        ('"F4"', "[]", 1, "whole bytes"), ('"BOOL"', "[4]", 4, None),
        (f'"{"F" * 9000}"', "[1]", 4, "unknown dtype"),
        (f'"{"F" * 20000}"', "[1]", 4, "longer than 10000"),
    ]
]  # fmt: skip

SHAPES = [
    Attack("shape of 2^256", "overflows 64 bits", one(shape=SHAPE_BOMB)),
    Attack("shape of 2^64, wraps to 0", "overflows", one(shape="[4294967296,4294967296]")),
    Attack("bytes of 2^64, wrap to 0", "overflows", one(shape="[4611686018427387904]")),
    Attack("shape of 2^63 and a zero after", "overflows", one(
        shape="[9223372036854775808,2,0]", offsets="[0,0]"), b""),
    Attack("shape of a zero and 2^126 after", None, one(
        shape="[0,9223372036854775808,9223372036854775808]", offsets="[0,0]"), b""),
    Attack("zero elements with bytes", "needs 0 bytes", one(shape="[0]")),
    Attack("elements without bytes", "needs 4 bytes", one(offsets="[0,0]"), b""),
    Attack("2^40 elements in 4 bytes", "needs 4.39805e.12 bytes", one(shape="[1099511627776]")),
    Attack("shape is a number", "expected whole numbers", one(shape="1")),
    Attack("shape is null", "expected whole numbers", one(shape="null")),
    Attack("64 dimensions", None, one(shape=f"[{','.join('1' * 64)}]")),
    Attack("65 dimensions", "65 dimensions, expected 64", one(shape=f"[{','.join('1' * 65)}]")),
    Attack("a million dimensions", "longer than", one(shape=f"[{','.join('1' * 10**6)}]")),
    Attack("scalar", None, one(shape="[]")),
]  # fmt: skip

LAYOUTS = [
    Attack("overlap", "it overlaps", two("[0,4]", "[2,6]"), bytes(6)),
    Attack("same bytes twice", "it overlaps", two("[0,4]", "[0,4]")),
    Attack("one within the other", "it overlaps", two("[0,8]", "[4,8]", ("[2]", "[1]")), bytes(8)),
    Attack("hole at the start", "follows a hole", one(offsets="[4,8]"), bytes(8)),
    Attack("hole between", "follows a hole", two("[0,4]", "[8,12]"), bytes(12)),
    Attack("hole of one byte", "follows a hole", two("[0,4]", "[5,9]"), bytes(9)),
    Attack("empty tensor in a hole", "follows a hole", two("[0,4]", "[8,8]", ("[1]", "[0]")),
           bytes(8)),
    Attack("empty tensor within another", "overlaps", two("[0,8]", "[4,4]", ("[2]", "[0]")),
           bytes(8)),
    Attack("empty tensor at 2^64 - 1", "follows a hole",
           one(shape="[0]", offsets="[18446744073709551615,18446744073709551615]"), b""),
    Attack("reversed", "got data_offsets", two("[4,0]", "[4,8]"), bytes(8)),
    Attack("beyond the end", "truncated", one(offsets="[0,8]", shape="[2]")),
    Attack("data missing", "truncated", ONE, b""),
    Attack("last byte missing", "truncated", ONE, bytes(3)),
    Attack("a byte that nobody owns", "bytes no tensor owns", ONE, bytes(5)),
    Attack("a file behind the file", "bytes no tensor owns", ONE, bytes(4) + b"PK\3\4" * 64),
    Attack("tensors out of order", None, two("[4,8]", "[0,4]"), bytes(range(8))),
    Attack("many empty tensors at one place", None, members(
        *((f'"{i}"', entry(shape="[0]", offsets="[0,0]")) for i in range(100))), b""),
]  # fmt: skip


# ---- large files


def _sparse(length: int) -> Callable[[Path], None]:
    """A header that is a hole: zero bytes."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", length))
            file.truncate(8 + length)

    return write


def _filled(start: bytes, unit: bytes, end: bytes, data: int = 0) -> Callable[[Path], None]:
    """A header of exactly LIMIT bytes: ``unit`` repeated, spaces for the rest."""

    def write(path: Path) -> None:
        count = (LIMIT - len(start) - len(end)) // len(unit)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", LIMIT) + start)
            for _ in range(count // 10**6):
                file.write(unit * 10**6)
            file.write(unit * (count % 10**6) + end)
            file.write(b" " * (8 + LIMIT - file.tell()))
            file.write(bytes(data))

    return write


def many_tensors(count: int) -> Callable[[Path], None]:
    """A legal file of ``count`` tensors of one byte."""

    def entries() -> Iterator[str]:
        for i in range(count):
            value = entry('"U8"', "[1]", f"[{i},{i + 1}]")
            yield f'"model.layers.{i}.weight":{value}'

    def write(path: Path) -> None:
        header = ("{" + ",".join(entries()) + "}").encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + count)

    return write


SHAPE_OF = b'{"a":{"dtype":"U8","shape":['
LARGE = [
    Attack(name, pattern, write=write)
    for name, pattern, write in [
        ("100 MB of zero bytes", "does not start", _sparse(LIMIT)),
        ("100 MB and one byte", "length 100000001, expected", _sparse(LIMIT + 1)),
        ("100 MB of spaces", None, _filled(b"{}", b" ", b"")),
        ("100 MB of nested objects", "nested too deeply", _filled(b"", b'{"a":', b"")),
        ("100 MB of lists in a shape", "longer than", _filled(SHAPE_OF, b"[],", b"1]}}")),
        ("100 MB of escapes in a name", "name of over", _filled(b'{"', b"\\u0041", b'":{}}')),
        ("100 MB without the closing quote", "not JSON", _filled(b'{"', b"a", b"")),
        ("100 MB of four-byte characters", None, _filled(
            b'{"__metadata__":{"k":"', "\U0001f600".encode(), b'"}}')),
        ("100,000 tensors", None, many_tensors(100_000)),
    ]
]  # fmt: skip

SMALL = [
    *PREFIXES, *ENCODINGS, *SYNTAX, *DUPLICATES, *METADATA, *NUMBERS, *DTYPES, *SHAPES, *LAYOUTS
]  # fmt: skip
