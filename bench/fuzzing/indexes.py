"""Index files near validity, against a plain reading of the same directory.

The directory stays: good shards, links, and things that are no files. Only the index changes. What
is accepted must be what the index says and the shards hold; nothing outside the directory may be
opened, other than through a link in it.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avops.disk import open_checkpoint
from avops.errors import CheckpointError
from bench.fuzzing.outcome import BOTH, FAILURE, NEITHER, STRICTER, Outcome, Watch, reason, shorten
from bench.fuzzing.tokens import Array, Object, Token, dump, gaps, garble, spelled

# The file of every tensor.
Files = Mapping[str, str]
Reader = Callable[[Path], Files]

INDEX = "model.safetensors.index.json"
SUFFIX = ".json"
# The tensors of every shard; names in other files are never found.
SHARDS: Mapping[str, tuple[str, ...]] = {
    "s1.safetensors": ("a", "b"),
    "s2.safetensors": ("c", "weight_map"),
    "é.safetensors": ("é", "\U0001f600", ""),
    "again.safetensors": ("a", "d"),
    "empty.safetensors": (),
    "linked.safetensors": ("e",),
    "outside.safetensors": ("o",),
}
_OTHERS = (
    "broken.safetensors", "cut.safetensors", "directory.safetensors", "fifo.safetensors",
    "loop.safetensors", "dangling.safetensors", "device.safetensors", "gone.safetensors",
)  # fmt: skip
_ODD_NAMES = (
    "../secret.safetensors", "../outside", "sub/s3.safetensors", "./s1.safetensors", "..", ".", "",
    "s1", "s1.safetensors/", "/etc/passwd", "S1.SAFETENSORS", "..\\secret.safetensors", "\x00",
    "s1.safetensors\x00", "\ns1.safetensors", "x" * 300 + ".safetensors", "\u202e.safetensors",
)  # fmt: skip
_VALUES = (
    "null",
    "1",
    "true",
    "[]",
    "{}",
    '["s1.safetensors"]',
    "-1e400",
    "NaN",
    "",
    "nul",
    "9" * 5000,
)
_TOP = ('"metadata"', '"weight_map"', '"weight\\u005fmap"', '"x"', '"\\ud800"', '""')
_REST = (
    '{"total_size":12}', '{"total_size":1e99}', "null", "[]", '"\\ud800"', "NaN", "[" * 2000,
    "[" * 100 + "]" * 100, '{"a":1,"a":2}', '"' + "y" * 3000 + '"', "9" * 5000, "-0", "tru",
)  # fmt: skip


def prepare(root: Path) -> Path:
    """The directory, in ``root``, beside files that must stay closed."""
    directory = root / "model"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "sub").mkdir(parents=True)
    for name, tensors in SHARDS.items():
        _shard(directory / name, tensors)
    _shard(directory / "sub/s3.safetensors", ("s",))
    _shard(root / "secret.safetensors", ("secret",))
    os.replace(directory / "outside.safetensors", root / "outside")
    (directory / "outside.safetensors").symlink_to("../outside")
    os.replace(directory / "linked.safetensors", directory / "blob")
    (directory / "linked.safetensors").symlink_to("blob")
    (directory / "broken.safetensors").write_bytes(b"broken, and longer than eight")
    (directory / "cut.safetensors").write_bytes((directory / "s1.safetensors").read_bytes()[:-1])
    (directory / "directory.safetensors").mkdir()
    os.mkfifo(directory / "fifo.safetensors")
    (directory / "loop.safetensors").symlink_to("loop.safetensors")
    (directory / "dangling.safetensors").symlink_to("nothing")
    (directory / "device.safetensors").symlink_to("/dev/zero")
    return directory


def _shard(path: Path, tensors: tuple[str, ...]) -> None:
    table = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i, name in enumerate(tensors)
    }
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(len(tensors)))


# ---- the comparison

_FILE_NAME = re.compile(r"(?:/[^:]*?)?[^/ ]*\.safetensors(?:\.index\.json)?|^/[^:]*")


def read_avops(directory: Path) -> Files:
    """The reader under test. Raises CheckpointError for what it refuses."""
    checkpoint = open_checkpoint(directory)
    return {n: checkpoint.files[t.shard].name for n, t in checkpoint.tensors.items()}


def read_plainly(raw: bytes) -> Files | None:
    """The meaning of the index ``raw``; None when it has none, or the shards contradict it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        index = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        files = index["weight_map"]
        used = {name: SHARDS[name] for name in set(files.values())}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    held = [(tensor, name) for name, tensors in used.items() for tensor in tensors]
    fits = held and all(used.values()) and len(dict(held)) == len(held) and dict(held) == files
    return files if fits else None


def check(
    raw: bytes, directory: Path, reader: Reader | None = None, watch: Watch | None = None
) -> Outcome:
    """What opening ``directory`` with the index ``raw`` gives, against its plain reading."""
    (directory / INDEX).write_bytes(raw)
    if watch:
        watch.start()
    try:
        ours: Files | None = (reader or read_avops)(directory)
        why = ""
    except CheckpointError as error:
        ours, why = None, _FILE_NAME.sub("FILE", reason(str(error)))
    except Exception as error:
        return Outcome(FAILURE, f"raised {type(error).__name__}")
    opened = watch.stop() if watch else []
    if any(os.path.dirname(path) != str(directory) for path in opened):
        return Outcome(FAILURE, "opened a path outside the directory")
    theirs = read_plainly(raw)
    if ours is None:
        return Outcome(NEITHER if theirs is None else STRICTER, why)
    if theirs is None:
        return Outcome(FAILURE, "accepted, but the index and the shards contradict each other")
    if ours != theirs:
        return Outcome(FAILURE, "accepted, but the index says something else")
    return Outcome(BOTH, "")


# ---- indexes


def _valid(rng: random.Random) -> Object:
    good = [name for name in SHARDS if name not in ("again.safetensors", "empty.safetensors")]
    pairs = [
        [spelled(rng, tensor), spelled(rng, name)]
        for name in rng.sample(good, rng.randint(1, len(good)))
        for tensor in SHARDS[name]
    ]
    if rng.random() < 0.5:
        rng.shuffle(pairs)
    members: list[list[Any]] = [['"weight_map"', Object(pairs)]]
    if rng.random() < 0.7:
        members.insert(rng.randint(0, 1), ['"metadata"', '{"total_size":12}'])
    return Object(members)


def _change(rng: random.Random, table: Object) -> None:
    maps = [value for _, value in table.items if isinstance(value, Object) and value.items]
    kind = rng.random()
    if kind < 0.25 or not maps:
        table.items.append([rng.choice(_TOP), rng.choice(_REST)])
        rng.shuffle(table.items)
        return
    pairs = rng.choice(maps).items
    at = rng.randrange(len(pairs))
    if kind < 0.4:
        pairs[at][1] = spelled(rng, rng.choice((*SHARDS, *_OTHERS)))
    elif kind < 0.6:
        pairs[at][1] = spelled(rng, rng.choice(_ODD_NAMES))
    elif kind < 0.7:
        value: Token = rng.choice((*_VALUES, Array([pairs[at][1]]), Object([list(pairs[at])])))
        pairs[at][1] = value
    elif kind < 0.78:
        pairs.insert(rng.randint(0, len(pairs)), list(pairs[at]))
    elif kind < 0.86:
        del pairs[at]
    elif kind < 0.94:
        pairs[at][0] = spelled(rng, rng.choice(("a", "d", "z", "secret", "__metadata__")))
    else:
        table.items.append(list(rng.choice(table.items)))


def generate(rng: random.Random) -> bytes:
    """One index."""
    table = _valid(rng)
    kind = rng.random()
    if 0.35 <= kind < 0.85:
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change(rng, table)
    gap = gaps(rng)
    text = gap() + dump(table, gap) + gap()
    raw = text.encode("utf-8", "surrogatepass")
    if kind >= 0.85:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            raw = garble(rng, raw, lambda: dump(_valid(rng), gap).encode())
    return raw


minimise = shorten
