"""The attack corpus of indexes: refused by name, and nothing outside the directory is opened."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import safetensors

from avops.disk import open_checkpoint
from avops.errors import CheckpointError
from disk.index_attacks import INDEX, INDEXES, IndexAttack

SECONDS = 2.0


def test_names_are_unique_and_many() -> None:
    names = [attack.name for attack in INDEXES]
    assert len(names) == len(set(names))
    assert len(names) >= 80


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are opened from here on."""
    real, paths = os.open, []

    def record(path: str | Path, *args: int, **kwargs: int) -> int:
        paths.append(Path(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", record)
    return paths


def peer(directory: Path) -> dict[str, str]:
    """Which file each tensor is in, by the package, from the files that the index names."""
    found = {}
    for file in set(json.loads((directory / INDEX).read_bytes())["weight_map"].values()):
        with safetensors.safe_open(directory / file, "np") as opened:
            found.update(dict.fromkeys(opened.keys(), file))
    return found


@pytest.mark.parametrize("attack", INDEXES, ids=lambda a: a.name)
def test_index(attack: IndexAttack, tmp_path: Path, opened: list[Path]) -> None:
    directory = tmp_path / "model"
    attack.make(directory)
    opened.clear()
    start = time.process_time()
    if attack.refused:
        with pytest.raises(CheckpointError, match=attack.refused) as caught:
            open_checkpoint(directory)
        message = str(caught.value)
        assert message.startswith(str(directory))
        assert len(message) < len(str(directory)) + 1000
        message.encode()
        assert message.isprintable()
    else:
        checkpoint = open_checkpoint(directory)
        files = {n: checkpoint.shards[t.shard].path.name for n, t in checkpoint.tensors.items()}
        assert files == peer(directory)
        assert checkpoint.nbytes == 4 * len(files)
    assert time.process_time() - start < SECONDS
    assert {path.parent for path in opened} <= {directory}
    assert not any(path.name in ("", ".", "..") for path in opened)
