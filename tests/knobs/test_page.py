"""docs/knobs.md: its code runs, and its figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from avops.knobs import device, pieces, residency, settings, transfer
from small_project import SmallProject

PAGE = (Path(__file__).parents[2] / "docs/knobs.md").read_text(encoding="utf-8")


def test_its_code_runs(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "docs/knobs.md", "exec"), names)
    knobs = names["knobs"]
    assert knobs.state == {"med": -1, "fin": 0.6000000238418579}  # type: ignore[attr-defined]
    assert "page cache" in capsys.readouterr().out


def test_its_figures_are_the_codes() -> None:
    assert transfer.Ring.COUNT == 4
    assert "through four pinned buffers" in PAGE
    assert pieces.IMAGE == 64 << 20
    assert "buffers of 64 MiB" in PAGE
    assert device.SLOTS == 3
    assert "three such buffers on the device" in PAGE
    assert (residency._DEVICE_SPARE, residency._HOST_SPARE) == (1 << 30, 2 << 30)
    assert "a tenth of its memory (at least 1 GiB)" in PAGE
    assert "memory a tenth (at least 2 GiB)" in PAGE


def test_its_tables_name_every_option() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert rows == [name for name in settings.RESIDENCIES if name != "auto"]
    for name in settings.Options.__annotations__:
        assert re.search(rf"\b{name}\b", PAGE), name
