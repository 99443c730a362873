"""What tests of the align room share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avops.align import Alignment, Settings, parse_prefer, ranked
from avops.score import load_items
from small_project import SmallProject

Jobs = Callable[..., Alignment]


@pytest.fixture
def quick() -> Settings:
    """Six steps that move the small project's random model."""
    return Settings(max_steps=6, lr=3e-3, schedule="constant", seed=3)


@pytest.fixture
def job(project: SmallProject, quick: Settings) -> Jobs:
    """job(out, settings=..., prefer=..., **options): an alignment of the small project's base."""

    def make(
        out: str | Path,
        settings: Settings = quick,
        *,
        prefer: str = "exp>gen,gen>avd",
        domains: tuple[str, ...] | None = ("med",),
        **options: Any,
    ) -> Alignment:
        items = load_items("items.jsonl").select(domains=domains)
        preferences = ranked(items, parse_prefer(prefer))
        made = Alignment("base.safetensors", preferences, Path(out), settings, device="cpu")
        return replace(made, **options)

    return make


@pytest.fixture
def write_items(tmp_path: Path) -> Callable[..., Path]:
    """write_items(name, records): JSON lines."""

    def write(name: str, records: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write
