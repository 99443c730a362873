"""Sharded directories that somebody made to break a reader, each with the verdict it deserves.

Every directory starts as two good shards, ``s1`` with the tensor a and ``s2`` with b, and an
index. ``refused`` is the pattern of the message; None marks what looks strange and is legal.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from disk.attacks import DEEP, ONE, Attack, entry, members

INDEX = "model.safetensors.index.json"
S1, S2 = "s1.safetensors", "s2.safetensors"
GOOD = {"a": S1, "b": S2}


@dataclass(frozen=True)
class IndexAttack:
    """One directory: the good one with the index ``text`` and what ``change`` does to it."""

    name: str
    refused: str | None
    text: bytes | None = None
    change: Callable[[Path], None] | None = None

    def make(self, directory: Path) -> None:
        directory.mkdir()
        shard(directory / S1, "a")
        shard(directory / S2, "b")
        text = json.dumps({"weight_map": GOOD}).encode() if self.text is None else self.text
        (directory / INDEX).write_bytes(text)
        if self.change:
            self.change(directory)


def shard(path: Path, *names: str) -> None:
    """A file with these tensors, one F32 each."""
    pairs = [
        (json.dumps(name), entry(offsets=f"[{4 * i},{4 * i + 4}]")) for i, name in enumerate(names)
    ]
    Attack("", None, members(*pairs), bytes(4 * len(names))).make(path)


def index(**files: object) -> bytes:
    return json.dumps({"weight_map": files}).encode()


def raw(weight_map: str, rest: str = "") -> bytes:
    """An index with raw JSON."""
    return f'{{{rest}"weight_map":{weight_map}}}'.encode()


def file_name(name: object) -> bytes:
    return index(a=S1, b=name)


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in the place of a file."""

    def change(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def outside(name: str) -> Callable[[Path], None]:
    """Move a file out of the directory and link to it."""

    def change(directory: Path) -> None:
        elsewhere = directory.parent / f"blob-{directory.name}"
        os.rename(directory / name, elsewhere)
        (directory / name).symlink_to(os.path.relpath(elsewhere, directory))

    return change


def bind(path: Path) -> None:
    """A Unix socket at a path that may be too long for one."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def links(count: int) -> Callable[[Path], None]:
    """More names of the first shard."""

    def change(directory: Path) -> None:
        for i in range(count):
            (directory / f"l{i}.safetensors").symlink_to(S1)

    return change


def sparse(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(_touched(path), size)


def _touched(path: Path) -> Path:
    path.touch()
    return path


PLAIN = "expected the plain name"
MAP = raw(json.dumps(GOOD))
TEXTS = [
    IndexAttack("empty", "not a valid index: not JSON", b""),
    IndexAttack("no JSON", "not JSON", b"weight_map"),
    IndexAttack("array", "not JSON", b"[]"),
    IndexAttack("null", "not JSON", b"null"),
    IndexAttack("empty object", "no tensor in a weight_map", b"{}"),
    IndexAttack("empty weight_map", "no tensor in a weight_map", raw("{}")),
    IndexAttack("weight_map is a list", "weight_map is a list", raw("[]")),
    IndexAttack("weight_map is null", "weight_map is null", raw("null")),
    IndexAttack("weight_map is text", "weight_map is a text", raw('"s1.safetensors"')),
    IndexAttack("weight_map is a number", "weight_map is a number", raw("1")),
    IndexAttack("weight_map in capitals", "no tensor", MAP.replace(b"weight_map", b"WEIGHT_MAP")),
    IndexAttack("weight_map with an escape", None, MAP.replace(b"weight_", b"weight\\u005f")),
    IndexAttack("weight_map twice", "duplicate key 'weight_map'", raw(json.dumps(GOOD), (
        '"weight_map":{"a":"s2.safetensors"},'))),
    IndexAttack("tensor twice, in two files", "duplicate key 'a'", raw(
        '{"a":"s2.safetensors","a":"s1.safetensors","b":"s2.safetensors"}')),
    IndexAttack("tensor twice, in one file", "duplicate key 'a'", raw(
        '{"a":"s1.safetensors","a":"s1.safetensors","b":"s2.safetensors"}')),
    IndexAttack("tensor in two spellings", "duplicate key 'a'", raw(
        '{"a":"s1.safetensors","\\u0061":"s1.safetensors","b":"s2.safetensors"}')),
    IndexAttack("metadata twice", "duplicate key 'metadata'", raw(
        json.dumps(GOOD), '"metadata":{},"metadata":{},')),
    IndexAttack("key in metadata twice", "duplicate key 'x'", raw(
        json.dumps(GOOD), '"metadata":{"x":1,"x":2},')),
    IndexAttack("byte order mark", "not JSON", b"\xef\xbb\xbf" + MAP),
    IndexAttack("UTF-16", "not UTF-8", MAP.decode().encode("utf-16")),
    IndexAttack("Latin-1", "not UTF-8", raw('{"\u00e9":"s1.safetensors"}').decode().encode("l1")),
    IndexAttack("lone surrogate in a tensor", "valid Unicode", raw('{"\\ud800":"s1.safetensors"}')),
    IndexAttack("lone surrogate in metadata", "valid Unicode", raw(
        json.dumps(GOOD), '"metadata":{"x":["\\udfff"]},')),
    IndexAttack("something behind", "something after the end", MAP + b"x"),
    IndexAttack("second object behind", "something after the end", MAP + MAP),
    IndexAttack("NUL behind", "something after the end", MAP + b"\0"),
    IndexAttack("cut off", "not JSON", MAP[:-1]),
    IndexAttack("trailing comma", "not JSON", MAP[:-2] + b",}}"),
    IndexAttack("comment", "not JSON", b"{/**/" + MAP[1:]),
    IndexAttack("white space around", None, b" \n" + MAP + b"\n\n"),
    IndexAttack("other keys", None, raw(json.dumps(GOOD), '"x":[1,{"y":null}],"z":true,')),
    IndexAttack("total_size that lies", None, raw(
        json.dumps(GOOD), '"metadata":{"total_size":1e400,"total_parameters":-1},')),
    IndexAttack("total_size that is text", None, raw(
        json.dumps(GOOD), '"metadata":{"total_size":"8 bytes"},')),
    IndexAttack("5,000 digits in metadata", "too long to read", raw(
        json.dumps(GOOD), f'"metadata":{{"total_size":{"9" * 5000}}},')),
    IndexAttack("2 MB of metadata", "longer than 1048576", raw(
        json.dumps(GOOD), f'"metadata":{{"x":"{"y" * (2 << 20)}"}},')),
    IndexAttack("100,000 brackets deep", "not JSON", b"[" * DEEP),
    IndexAttack("100,000 objects deep", "nested too deeply", b'{"a":' * DEEP),
    IndexAttack("deep in metadata", "nested too deeply", raw(
        json.dumps(GOOD), f'"metadata":{"[" * DEEP + "]" * DEEP},')),
    IndexAttack("deep in the weight_map", "is in a list", raw(f'{{"a":{"[" * DEEP}')),
    IndexAttack("deep in front of the weight_map", "weight_map is an obj|'a' is in an object", raw(
        '{"a":' * DEEP)),
]  # fmt: skip

NAMES = [
    IndexAttack(f"file {label}", pattern, file_name(name))
    for label, name, pattern in [
        ("../", "../s2.safetensors", PLAIN), ("absolute", "/etc/passwd", PLAIN),
        ("absolute shard", "/tmp/s2.safetensors", PLAIN), ("./", "./s2.safetensors", PLAIN),
        ("in a subdirectory", "sub/s2.safetensors", PLAIN), ("..", "..", PLAIN), (".", ".", PLAIN),
        ("with a backslash", "..\\s2.safetensors", PLAIN), ("empty", "", PLAIN),
        ("without an ending", "s2", PLAIN), ("pickle", "s2.bin", PLAIN),
        ("in capitals", "S2.SAFETENSORS", PLAIN), ("with a space behind", f"{S2} ", PLAIN),
        ("with a slash behind", f"{S2}/", PLAIN), ("URL", f"https://x/{S2}", PLAIN),
        ("with a NUL", f"s2\0.safetensors{S2}", PLAIN), ("with a newline", f"\n{S2}", PLAIN),
        ("with terminal codes", f"\x1b[31m{S2}", PLAIN), ("right to left", f"\u202e{S2}", PLAIN),
        ("of 300 characters", "x" * 300 + S2, PLAIN),
        ("of 300 bytes", "\u00e9" * 150 + S2, PLAIN),
        ("of 1 MB", "x" * (1 << 20) + S2, PLAIN), ("surrogate", f"\ud800{S2}", "valid Unicode"),
        ("percent-encoded", "%2e%2e%2fs2.safetensors", "shard missing"),
        ("of a home", "~.safetensors", "shard missing"), ("hidden", ".safetensors", "missing"),
        ("with a variable", "$HOME.safetensors", "shard missing"),
        ("number", 2, "is in a number"), ("null", None, "is in null"), ("list", [S2], "is in a li"),
        ("object", {"f": S2}, "is in an object"), ("true", True, "is in true"),
    ]
]  # fmt: skip

FILES = [
    IndexAttack("good", None),
    IndexAttack("shard missing", "s2.safetensors: shard missing", None, replace(S2, lambda _: 0)),
    IndexAttack("shard links to nothing", "missing", None, replace(S2, link("gone"))),
    IndexAttack("shard links to itself", "missing", None, replace(S2, link(S2))),
    IndexAttack("shard links in a circle", "missing", None, lambda d: (
        replace(S2, link("x"))(d), (d / "x").symlink_to(S2))[1]),
    IndexAttack("shard links outside, as in a hub snapshot", None, None, outside(S2)),
    IndexAttack("index links outside, as in a hub snapshot", None, None, outside(INDEX)),
    IndexAttack("shard links to a device", "not a regular", None, replace(S2, link("/dev/zero"))),
    IndexAttack("shard links to a directory", "not a regular", None, replace(S2, link("/"))),
    IndexAttack("shard is a directory", "not a regular", None, replace(S2, Path.mkdir)),
    IndexAttack("shard is a FIFO", "not a regular", None, replace(S2, os.mkfifo)),
    IndexAttack("shard is a socket", "cannot open for reading", None, replace(S2, bind)),
    IndexAttack("shard is empty", "0 bytes", None, lambda d: os.truncate(d / S2, 0)),
    IndexAttack("shard is cut", "truncated", None, lambda d: os.truncate(d / S2, 40)),
    IndexAttack("shard is an index", "not a valid safetensors", None, replace(S2, link(INDEX))),
    IndexAttack("shard without tensors", "holds no tensors", None, lambda d: shard(d / S2)),
    IndexAttack("index is a directory", "not a regular file", None, replace(INDEX, Path.mkdir)),
    IndexAttack("index is a FIFO", "not a regular file", None, replace(INDEX, os.mkfifo)),
    IndexAttack("index links to itself", "cannot open", None, replace(INDEX, link(INDEX))),
    IndexAttack("index links to a device", "not a regular", None,
                replace(INDEX, link("/dev/zero"))),
    IndexAttack("index above the limit", "expected at most 100000000", None,
                replace(INDEX, sparse(200_000_001))),
    IndexAttack("tensor in two shards", "'a' is in both s1.safetensors and s2", None,
                lambda d: shard(d / S2, "b", "a")),
    IndexAttack("tensors swapped", "'a' is in s2.*the index is stale", index(a=S1, b=S2),
                lambda d: (shard(d / S1, "b"), shard(d / S2, "a"))[0]),
    IndexAttack("index names a tensor too many", "'c' is in no shard", index(a=S1, b=S2, c=S2)),
    IndexAttack("shard has a tensor too many", "'c' is in s2.*says nothing of it", None,
                lambda d: shard(d / S2, "b", "c")),
    IndexAttack("index names __metadata__", "'__metadata__' is in no",
                index(a=S1, __metadata__=S1)),
    IndexAttack("shard that nobody names", None, index(a=S1)),
    IndexAttack("single file beside", "one of them is stale", None,
                lambda d: shard(d / "model.safetensors", "a", "b")),
    IndexAttack("index names the single file", None, index(z="model.safetensors"),
                lambda d: shard(d / "model.safetensors", "z")),
    IndexAttack("one file under two names", "'a' is in both", index(a=S1, b="l0.safetensors"),
                links(1)),
    IndexAttack("one file under 300 names", "'a' is in both", index(
        a=S1, **{f"t{i}": f"l{i}.safetensors" for i in range(300)}), links(300)),
    IndexAttack("100,000 files", "f0.safetensors: shard missing", index(
        **{f"t{i}": f"f{i}.safetensors" for i in range(100_000)})),
    IndexAttack("100,000 tensors in one file", "'t0' is in no shard", index(
        a=S1, b=S2, **{f"t{i}": S1 for i in range(100_000)})),
    IndexAttack("name of 1 MB", "'nnn.*is in no shard", index(a=S1, b=S2, **{"n" * (1 << 20): S2})),
    IndexAttack("header of a shard is an attack", "s2.safetensors: not a valid", None,
                lambda d: Attack("", None, ONE, length=2**63).make(d / S2)),
]  # fmt: skip

INDEXES = [*TEXTS, *NAMES, *FILES]
