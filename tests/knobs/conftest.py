"""A world of a toy, and images that are small enough for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from avops.knobs import device, loader, pieces
from knobs.toy import World, make


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a few hundred elements, so that a toy has many groups."""
    monkeypatch.setattr(pieces, "IMAGE", 4096)
    monkeypatch.setattr(loader, "CHUNK", 1500)
    monkeypatch.setattr(device, "ARENA", 10_000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A toy in bf16, in one file."""
    return make(tmp_path)
