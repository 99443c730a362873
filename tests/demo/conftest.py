"""One tiny world, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from avops.demo import World, build

SEED = 1


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("demo") / "tiny", seed=SEED, size="tiny")


@pytest.fixture
def tiny_copy(tiny: World, tmp_path: Path) -> Path:
    """A copy of the tiny world's directory, free to be damaged."""
    import shutil

    return Path(shutil.copytree(tiny.directory, tmp_path / "copy"))
