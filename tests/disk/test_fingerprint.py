"""Fingerprints are what their docstring says, computed here in another way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avops.disk import fingerprint, open_checkpoint
from avops.errors import CheckpointError

Save = Callable[..., Path]
SIZES = (0, 1, 2, 4095, 4096, 4097, 6144, 8191, 8192, 8193, 12287, 12288, 12289, 12290, 50001)


def expected(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(b"avops-fingerprint-1\n")
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, "U8", list(array.shape)]).encode() + b"\n")
        data = array.tobytes()
        for start in sorted({0, max(0, len(data) // 2 - 2048), max(0, len(data) - 4096)}):
            digest.update(data[start : start + 4096])
    return digest.hexdigest()


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {f"t.{size}": rng.integers(0, 256, size, dtype=np.uint8) for size in SIZES}
    odd = {'quo"te\\ü\u2028\x7f': np.array(7, np.uint8), "two": np.ones((3, 5), np.uint8)}
    return made | odd


def test_samples_of_tensors_of_all_sizes(save: Save, tensors: dict[str, np.ndarray]) -> None:
    assert fingerprint(open_checkpoint(save("a.safetensors", tensors))) == expected(tensors)


def test_short_and_interrupted_reads(
    save: Save, tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(save("a.safetensors", tensors))
    real, calls = os.pread, []

    def short(fd: int, nbytes: int, offset: int) -> bytes:
        calls.append(offset)
        if len(calls) % 3 == 0:
            raise InterruptedError
        return real(fd, max(0, nbytes - len(calls) % 3), offset)

    monkeypatch.setattr(os, "pread", short)
    assert fingerprint(checkpoint) == expected(tensors)
    assert len(calls) > len(SIZES)


def test_a_file_that_shrank_is_named(save: Save, tensors: dict[str, np.ndarray]) -> None:
    path = save("a.safetensors", tensors)
    checkpoint = open_checkpoint(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"a.safetensors: ended at byte .* expected"):
        fingerprint(checkpoint)
