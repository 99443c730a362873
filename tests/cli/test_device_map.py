"""--device-map of score, sweep and search: the same scores, and what it cannot go with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from avops.cli.main import main
from small_project import SmallProject

pytest.importorskip("accelerate")

SCORE = ("score", "--av", "med:-1", "--limit", "1")
SWEEP = ("sweep", "--av", "med:-1:1:1", "--limit", "1")
SEARCH = ("search", "--av", "med:-1:1:1", "--strategy", "grid", "--baselines", "none")
SEARCH += ("--limit", "1", "--holdout", "none")


def result(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    return capsys.readouterr().err


@pytest.fixture
def given(project: SmallProject) -> str:
    Path("map.json").write_text(json.dumps({"": "cpu"}))
    return "map.json"


def test_score(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    want = result(capsys, *SCORE, "--device", "cpu")
    assert result(capsys, *SCORE, "--device-map", given)["domains"] == want["domains"]


def test_auto_takes_what_is_there(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result(capsys, *SCORE, "--device-map", "auto")
    assert found["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")


def test_sweep(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    want = result(capsys, *SWEEP, "--device", "cpu")
    assert result(capsys, *SWEEP, "--device-map", given, "--force") == want


def test_search_has_one_worker(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # else: a worker for each
    found = result(capsys, *SEARCH, "--device-map", given, "--run", "run")
    assert (found["points"], found["measured"]) == (3, 3)
    plan = result(capsys, *SEARCH, "--device-map", given, "--dry-run")
    assert plan["workers"] == 1
    for words in (["--workers", "2"], ["--ray"]):
        text = refused(capsys, *SEARCH, "--device-map", given, *words)
        assert f"{' '.join(words)} with --device-map map.json: the map lays one model" in text
        assert "expected one worker; leave one of them out" in text


@pytest.mark.parametrize("verb", [SCORE, SWEEP, SEARCH])
def test_not_with_a_device(
    verb: tuple[str, ...], project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(capsys, *verb, "--device-map", "auto", "--device", "cpu")
    assert "--device cpu with --device-map auto: the map says where" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fast", None, "device_map 'fast': expected one of auto, balanced, balanced_low_0"),
        ("none.json", None, "--device-map none.json: it cannot be read as JSON: [Errno 2]"),
        ("bad.json", "{", "--device-map bad.json: it cannot be read as JSON: Expecting"),
        ("list.json", "[0]", "--device-map list.json: it holds a list, expected an object with"),
        ("disk.json", '{"": "disk"}', "module '' is to be on 'disk', and accelerate would bring"),
        ("far.json", '{"": 99}', "is to be on 99, but torch sees"),
        ("other.json", '{"h": "cpu", "": "cpu"}', "names 1 modules that hold nothing in this"),
    ],
)
def test_maps_that_are_none(
    name: str,
    content: str | None,
    message: str,
    project: SmallProject,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        Path(name).write_text(content)
    assert message in " ".join(refused(capsys, *SCORE, "--device-map", name).split())
