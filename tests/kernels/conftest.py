"""Backends as fixtures: those that cannot serve here are skipped, with the reason."""

from __future__ import annotations

import pytest

from avops.kernels import registry

NAMES = registry.backends("combine")


def _available(name: str) -> str:
    for row in registry.report():
        if row.backend == name and not row.available:
            pytest.skip(row.reason)
    return name


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend, the reference included."""
    return _available(request.param)


@pytest.fixture(params=[name for name in NAMES if name != "reference"])
def fast_backend(request: pytest.FixtureRequest) -> str:
    """Every backend that is held against the reference."""
    return _available(request.param)
