"""What tests of the data room share: an endpoint, settings, and a run in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from avops.align.data import (
    Chat,
    DataSet,
    Endpoint,
    Journal,
    Options,
    Persona,
    Settings,
    Tree,
    finish,
    gather,
    load_templates,
)
from fake_endpoint import FakeEndpoint, unwatched, write_templates

Run = Callable[..., tuple[DataSet, Endpoint]]


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two roots, one round of two relatives each: six personas, twelve queries."""
    templates = load_templates(write_templates(tmp_path / "templates"))
    return Settings(Chat("fake"), templates, ("med", "leg"), tree=Tree(2, 1, 2))


@pytest.fixture
def run(server: FakeEndpoint, settings: Settings, tmp_path: Path) -> Run:
    """run(settings=…, known=…, journal=…, **options): gather and finish against the server."""

    def start(
        own: Settings = settings,
        known: tuple[Persona, ...] = (),
        journal: str = "journal",
        **options: Any,
    ) -> tuple[DataSet, Endpoint]:
        opened = Options(server.url, **{"retries": 2, "timeout": 5.0, **options})
        with Journal(tmp_path / journal) as book:
            endpoint = Endpoint(opened, book)
            return finish(own, gather(own, endpoint, known, unwatched)), endpoint

    return start
