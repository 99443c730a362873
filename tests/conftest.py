"""Fixtures that many rooms share."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import small_project
from small_project import SmallProject

if TYPE_CHECKING:
    from avops.demo import World

# A busy machine is no failure.
settings.register_profile("avops", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("avops")

Tensors = Mapping[str, np.ndarray]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(name, tensors, metadata=None): write a file with the safetensors package.

    uint16 arrays are written as BF16.
    """
    import safetensors.torch
    import torch

    def write(name: str, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {}
        for key, value in tensors.items():
            tensor = torch.from_numpy(value.copy())
            made[key] = tensor.view(torch.bfloat16) if value.dtype == np.uint16 else tensor
        path.write_bytes(safetensors.torch.save(made, metadata))
        return path

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu, visibly, where there is no CUDA device."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def _small_project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return small_project.make(tmp_path_factory.mktemp("small") / "project")


@pytest.fixture
def project(
    _small_project: SmallProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SmallProject:
    """A fresh copy of the small project, which is the current directory."""
    directory = tmp_path / "project"
    shutil.copytree(_small_project.directory, directory)
    monkeypatch.chdir(directory)
    return dataclasses.replace(_small_project, directory=directory)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The demo's tiny world, built once."""
    from avops.demo import build

    return build(tmp_path_factory.mktemp("demo") / "tiny", seed=1, size="tiny")
