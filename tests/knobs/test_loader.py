"""Reading into images: cached or past the cache, in chunks, from several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avops.disk import open_checkpoint
from avops.disk.source import ALIGN, DIRECT_FROM, Source
from avops.errors import CheckpointError
from avops.knobs import loader
from avops.knobs.loader import Loader, stop
from avops.knobs.pieces import Read
from families import Save

COUNT = 700_001  # bytes of each file's tensor


@pytest.fixture
def files(save: Save) -> list[Path]:
    rng = np.random.default_rng(0)
    return [
        save(f"{name}.safetensors", {"w": rng.integers(0, 255, COUNT).astype(np.uint8)})
        for name in "ab"
    ]


@pytest.mark.parametrize("way", ["cached", "kept", "direct"])
def test_every_byte_arrives_in_its_place(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(loader, "CHUNK", 3 * DIRECT_FROM)
    if way == "direct":
        monkeypatch.setattr(Source, "cached_fd", lambda *_: None)
        monkeypatch.setattr(Source, "_is_cached", lambda *_: False)
    size = files[0].stat().st_size
    reads, expected = [], np.full(3 * size, 0xEE, np.uint8)
    at = 5
    for number, path in enumerate(files):
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        for start, stop_at in ((0, 1), (7, ALIGN + 1), (11, DIRECT_FROM + 11), (4097, size)):
            reads.append(Read(number, start, stop_at - start, at))
            expected[at : at + stop_at - start] = raw[start:stop_at]
            at += stop_at - start + 3
    made = Loader([open_checkpoint(path) for path in files], keep=way == "kept")
    image = np.full(3 * size, 0xEE, np.uint8)
    for future in made.submit(image, reads):
        future.result()
    assert (image == expected).all()
    made.check()


def test_a_file_that_is_another_by_now(files: list[Path]) -> None:
    checkpoints = [open_checkpoint(path) for path in files]
    made = Loader(checkpoints)
    files[1].write_bytes(files[1].read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"b.safetensors: changed while it was in use"):
        made.check()
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        Loader(checkpoints)


def test_what_was_not_begun_is_cancelled(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNK", 4096)
    made = Loader([open_checkpoint(files[0])])
    image = np.zeros(COUNT, np.uint8)
    futures = made.submit(image, [Read(0, 0, COUNT, 0)])
    stop(futures)
    assert all(future.done() for future in futures)
    after = image.copy()
    assert (image == after).all()
