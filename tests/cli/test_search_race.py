"""avops search --race: by default where it is safe, and refused where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avops.cli import main as cli
from avops.search.store import Store
from small_project import SmallProject

AXES = ("--av", "med:-1:1:.25", "fin:-1:1:.5", "--baselines", "none", "--device", "cpu")
WANT = ("--want", "med=gen,fin=avd")


def many(count: int) -> None:
    """Each item of the project ``count`` times, with queries of their own."""
    records = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines() if line]
    for record in records:
        record.pop("id", None)
    lines = [
        json.dumps({**record, "query": f"{record['query']} {number}"})
        for number in range(count)
        for record in records
    ]
    Path("items.jsonl").write_text("\n".join(lines))


def searched(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["search", *AXES, *words, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["search", *AXES, *words]) == 2
    return capsys.readouterr().err


def test_a_raced_grid_has_the_winner_of_the_whole_one(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    many(5)
    grid = (*WANT, "--strategy", "grid", "--holdout", "none")
    whole = searched(capsys, *grid, "--run", "whole")
    raced = searched(capsys, *grid, "--race", "--run", "raced")
    assert (whole["measured"], whole["out"]) == (45, 0)
    assert raced["out"] > 0
    assert raced["measured"] + raced["out"] == 45
    assert raced["findings"][0]["point"] == whole["findings"][0]["point"] is not None
    again = searched(capsys, *grid, "--race", "--run", "raced")
    assert (again["findings"], again["out"]) == (raced["findings"], raced["out"])
    assert cli.main(["status", "raced"]) == 0
    said = capsys.readouterr().out
    assert f"{raced['out']} put out of the race on some items" in said
    assert f"{raced['measured']} of 45 points" in said


@pytest.mark.parametrize(
    ("count", "words", "race"),
    [
        (5, WANT, False),
        (5, (*WANT, "--race"), True),
        (5, (*WANT, "--no-race"), False),
        (5, (*WANT, "--strategy", "grid"), False),
        (5, (), False),
    ],
    ids=["default", "--race", "--no-race", "grid", "all"],
)
def test_who_races(
    project: SmallProject,
    capsys: pytest.CaptureFixture[str],
    count: int,
    words: tuple[str, ...],
    race: bool,
) -> None:
    """Nobody races unless told to."""
    many(count)
    searched(capsys, *words, "--holdout", "none", "--evaluations", "1", "--run", "run")
    with Store.read("run") as store:
        assert store.study.race is race


def test_what_is_refused(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--race with 27 wanted combinations" in refused(capsys, "--race")
    said = " ".join(refused(capsys, *WANT, "--race", "--strategy", "refine").split())
    assert "--race with --strategy refine: it needs all scores of every point" in said
    assert "active, grid" in said
