"""Readers that are wrong on purpose, for the fuzzer to catch."""

from __future__ import annotations

import json
import math
import os
import struct
import time
from pathlib import Path

from avops.dtypes import DTYPES
from avops.errors import CheckpointError
from bench.fuzzing import headers, indexes


def lax(path: Path) -> headers.Tensors:
    """The format as one would write it down in an afternoon: json.loads and slices."""
    raw = path.read_bytes()
    try:
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        table = json.loads(raw[8:start])
        found = {}
        for name, entry in table.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                data, shape = raw[start + begin : start + end], tuple(entry["shape"])
                if len(data) * 8 != math.prod(shape) * DTYPES[entry["dtype"]].bits:
                    raise ValueError
                found[name] = (entry["dtype"], shape, data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise CheckpointError(f"{path}: not a valid file: whatever") from None
    return found


def aborts(path: Path) -> headers.Tensors:
    """Ends its process at a name in two spellings of one letter."""
    if b"\\u0061" in path.read_bytes():
        os.abort()
    return headers.read_avops(path)


def loops(path: Path) -> headers.Tensors:
    """Never comes back from a file with a null."""
    while b"null" in path.read_bytes():
        time.sleep(0.01)
    return headers.read_avops(path)


def raises(path: Path) -> headers.Tensors:
    """Lets an exception through at a float."""
    if b"1.0" in path.read_bytes():
        raise IndexError
    return headers.read_avops(path)


def follows(directory: Path) -> indexes.Files:
    """Opens whatever an index names."""
    try:
        files = json.loads((directory / indexes.INDEX).read_bytes())["weight_map"]
        for file in files.values():
            (directory / file).open("rb").close() if "fifo" not in file else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError("whatever") from None
    return dict(files)
