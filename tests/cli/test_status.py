"""avops status: how a run is getting on; the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avops.cli.main import main
from avops.search.store import Store
from made_run import make_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"), 12, given="-1:1:.5", items=4)
    return Path("run")


def test_status_while_it_runs_and_afterwards(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run"]) == 0
    out = capsys.readouterr().out
    assert "run: not running; it did not come to its end" in out
    assert "measured  12 of 125 points (9.6 %)" in out
    assert "of 27 combinations" in out
    assert "worker  evaluations" in out
    with Store.read(run) as store:
        study, identity = store.study, store.identity
    with Store.open(run, study, identity) as store:
        assert main(["status", "run"]) == 0
        assert "run: running (process " in capsys.readouterr().out
        store.note("ended", why="all 125 points were asked for", exhausted=False)
    assert main(["status", "run"]) == 0
    assert "run: ended: all 125 points were asked for" in capsys.readouterr().out


def test_json_and_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run", "--json", "--export", "scores.csv"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["measured"] == 12
    assert data["running"] is False
    assert data["export"] == "scores.csv"
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + data["rows"]
    assert main(["status", "run", "--export", "scores.csv"]) == 2
    assert "scores.csv: already exists" in capsys.readouterr().err
    assert main(["status", "run", "--export", "scores.txt"]) == 2
    assert "expected a name ending in .csv or .parquet" in capsys.readouterr().err


def test_a_name_from_a_file_cannot_steer_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.read(run) as store:
        study, identity = store.study, store.identity
    with Store.open(run, study, identity) as store:
        store.note("strategy", text="\x1b[2Jgone", evaluations=1)
    assert main(["status", "run"]) == 0
    assert "\x1b" not in capsys.readouterr().out
