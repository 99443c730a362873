"""The tiny world, free to be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from avops.demo import World


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_copy(tiny: World, tmp_path: Path) -> Path:
    """A copy of the tiny world's directory, free to be damaged."""
    return Path(shutil.copytree(tiny.directory, tmp_path / "copy"))
