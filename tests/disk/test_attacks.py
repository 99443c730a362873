"""The attack corpus: refused by name or read as the safetensors package reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors

from avops.disk import open_checkpoint
from avops.errors import CheckpointError
from disk.attacks import LARGE, SMALL, Attack

# Refusing a small file takes milliseconds; this is what a user would not yet call a hang.
SECONDS = 2.0
# CPU time for 100 MB, where reading and decoding alone take half a second.
LARGE_SECONDS = 5.0
# Address space of the process that opens a header of 100 MB, in bytes.
MEMORY = 1_000_000_000


def peer(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    """Dtype and shape of every tensor as the package reads the file; None when it rejects it."""
    try:
        with safetensors.safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except safetensors.SafetensorError:
        return None


def read(path: Path) -> dict[str, tuple[str, list[int]]]:
    tensors = open_checkpoint(path).tensors
    return {name: (t.dtype.tag, list(t.shape)) for name, t in tensors.items()}


def data(path: Path) -> dict[str, bytes]:
    raw = path.read_bytes()
    tensors = open_checkpoint(path).tensors.values()
    return {t.name: raw[t.offset : t.offset + t.nbytes] for t in tensors}


def test_names_are_unique_and_many() -> None:
    names = [attack.name for attack in (*SMALL, *LARGE)]
    assert len(names) == len(set(names))
    assert len(names) >= 80


@pytest.mark.parametrize("attack", SMALL, ids=lambda a: a.name)
def test_small(attack: Attack, tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    path = tmp_path / "x.safetensors"
    attack.make(path)
    theirs = peer(path)
    record_property("safetensors", "rejects" if theirs is None else "accepts")
    start = time.process_time()
    if attack.refused:
        with pytest.raises(CheckpointError, match=attack.refused.replace("^", r"\^")) as caught:
            open_checkpoint(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: not a valid safetensors file: ")
        assert len(message) < len(str(path)) + 6000
        message.encode()
    else:
        assert theirs is not None, "the package rejects it"
        assert read(path) == theirs
        peers = safetensors.deserialize(path.read_bytes())
        assert data(path) == {name: bytes(info["data"]) for name, info in peers}
    assert time.process_time() - start < SECONDS


OPENER = """
import json, resource, sys, time
from pathlib import Path
from avops.disk import open_checkpoint
from avops.errors import CheckpointError
from disk.attacks import LARGE
path, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for attack in LARGE:
    attack.make(path)
    start = time.process_time()
    try:
        verdict = len(open_checkpoint(path).tensors)
    except CheckpointError as error:
        verdict = str(error)
    except BaseException as error:
        verdict = repr(error)
    print(json.dumps([attack.name, verdict, time.process_time() - start]))
"""


def test_large(tmp_path: Path) -> None:
    """In a process that may not use more than MEMORY bytes."""
    path = tmp_path / "x.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", OPENER, str(path), str(MEMORY)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    results = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert results.keys() == {attack.name for attack in LARGE}
    for attack in LARGE:
        verdict, seconds = results[attack.name]
        assert seconds < LARGE_SECONDS, attack.name
        if attack.refused is None:
            attack.make(path)
            theirs = peer(path)
            assert theirs is not None
            assert verdict == len(theirs), attack.name
        else:
            assert re.search(attack.refused, verdict), (attack.name, verdict[:300])
            assert len(verdict) < 1000


def test_a_path_with_a_nul() -> None:
    with pytest.raises(CheckpointError, match="cannot open the checkpoint: embedded null byte"):
        open_checkpoint("a\0b")
