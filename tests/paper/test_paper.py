"""The whole path on a world too small to mean anything: what is checked is that it is all there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from avops.cli import paper as verb
from avops.cli.main import main
from avops.demo import sizes
from avops.demo.ipo import Alignment
from avops.demo.train import Schedule
from avops.paper import Lab, Plan, joint, tables

pytest.importorskip("trl", reason="the joint baseline is trained by TRL")
pytest.importorskip("sklearn", reason="the embedded judge")


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Alignment(steps=2, queries=2, lr=1e-3, weights=(1.0,))
    small = replace(
        sizes.SIZES["tiny"],
        schedule=Schedule(steps=30, batch=8, lr=3e-3),
        alignment=replace(quick, weights=(1.0, 1.0)),
        items={"train": 12, "validation": 4, "test": 4},
        chat=sizes.ChatSize(60, quick, {"train": 8, "validation": 4, "test": 4}),
    )
    monkeypatch.setitem(sizes.SIZES, "full", small)
    plan = Plan(lams="-1:1:.5", grid="-1:1:1", answers=1, targets=Plan.targets[:1], limit=2)
    monkeypatch.setattr(verb, "_plan", lambda **_: plan)
    monkeypatch.setattr(joint, "STEPS", 2)
    monkeypatch.setattr("avops.paper.judged.MAX_TOKENS", 4)


@pytest.mark.usefixtures("small_world")
def test_the_whole_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["paper", str(out), "--quick"]) == 0
    page = (out / "paper.md").read_text(encoding="utf-8")
    first = page.splitlines()[2]
    assert "synthetic" in first
    assert "Not to be quoted" in page
    for title in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Figure 2", "Figure 3",
                  "Figure 4", "What reproduces", "Time"):  # fmt: skip
        assert f"## {title}" in page, title
    pictures = re.findall(r"\]\((figures/[^)]+)\)", page)
    assert len(pictures) == 9
    for picture in pictures:
        assert (out / picture).read_bytes().startswith(b"\x89PNG"), picture
    found = json.loads((out / "paper.json").read_text())["stages"]
    assert found["search"]["data"]["evaluations"] <= 27
    assert len(found["search"]["data"]["found"]) == 27
    capsys.readouterr()
    monkeypatch.setattr(Lab, "summary", None)
    monkeypatch.setattr(Lab, "swept", None)
    assert main(["paper", str(out), "--quick", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["stages"].keys() == found.keys()
    assert (out / "paper.md").read_text(encoding="utf-8") == page


def test_a_missing_package_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["paper", str(tmp_path / "out")]) == 2
    assert "avops[align]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shares_in_the_tables() -> None:
    assert tables.share([0.625, 0.5, 1.0]) == ".62 [.50, 1.00]"
    assert tables.share([0.0, 0.0, 0.06]) == ".00 [.00, .06]"
    text = tables.markdown(("a", "b"), [["1", "2"]])
    assert text == "| a | b |\n|---|---|\n| 1 | 2 |\n"
