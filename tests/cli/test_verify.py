"""avops verify as a user types it, on what avops merge wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avops.cli.main import main
from avops.disk import RECIPE_NAME
from avops.disk.digest import file_digest
from small_project import SmallProject


@pytest.fixture
def merged(project: SmallProject) -> Path:
    assert main(["merge", "hf", "--av", "med:-1", "-o", "merged"]) == 0
    return Path("merged")


def out(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["verify", *argv]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def damage(path: Path) -> str:
    """Change the last byte. Returns the digest that is expected of it."""
    before = file_digest(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return before


def test_all_well(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, err = out(capsys, "merged")
    files = len(list(merged.iterdir())) - 1
    assert text.startswith(f"merged: all well: {files} files, {files} digests, ")
    assert text.count("\n") == 1
    assert err == ""


def test_problems_are_listed(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = damage(merged / "model.safetensors")
    (merged / "config.json").unlink()
    text, err = out(capsys, "merged", code=1)
    found = file_digest(merged / "model.safetensors")
    first, second, verdict = text.splitlines()
    assert first == f"config.json: missing, but {RECIPE_NAME} names it; copy or merge it again"
    assert second == (
        f"model.safetensors: its xxh3 digest is {found}, expected {wanted}: its bytes were "
        "changed; copy or merge it again"
    )
    assert verdict.startswith("merged: 2 problems: ")
    assert err == ""


def test_json(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(out(capsys, "merged", "--json")[0])
    assert (report["ok"], report["problems"], report["notes"]) == (True, [], [])
    assert (report["path"], report["recipe"], report["nonfinite"]) == ("merged", RECIPE_NAME, {})
    (merged / "config.json").unlink()
    report = json.loads(out(capsys, "merged", "--json", code=1)[0])
    assert not report["ok"]
    assert [problem["file"] for problem in report["problems"]] == ["config.json"]


def test_any_checkpoint(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    text, err = out(capsys, "base.safetensors")
    assert text.startswith("base.safetensors: all well: 1 file, 0 digests, ")
    assert err == "note: no recipe of avops here, so no digests: headers and values only\n"
    # Two bytes of all ones are a NaN in bfloat16.
    data = Path("base.safetensors").read_bytes()
    Path("base.safetensors").write_bytes(data[:-2] + b"\xff\xff")
    text, _ = out(capsys, "base.safetensors", code=1)
    assert "base.safetensors: tensor 'model.norm.weight': 1 value is NaN or infinite" in text
    assert "base.safetensors: 1 problem: " in text
    text, err = out(capsys, "base.safetensors", "--allow-nonfinite")
    assert "1 value is NaN or infinite, as allowed" in err


def test_a_hub_id(
    project: SmallProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def local_path(text: str, *, progress: object) -> str:
        asked.append((text, callable(progress)))
        return "base.safetensors"

    monkeypatch.setattr("avops.disk.hub.local_path", local_path)
    text, _ = out(capsys, "owner/name@v1")
    assert text.startswith("owner/name@v1: all well: 1 file")
    out(capsys, "base.safetensors")
    assert asked == [("owner/name@v1", True)]


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = out(capsys, "gone", code=2)
    assert "avops verify: error: gone: cannot open the checkpoint: No such file" in err


def test_several_vectors_elsewhere(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """--av takes one or several, as it does everywhere."""
    assert main(["merge", "hf", "--av", "med:-1", "leg:.5", "-o", "merged"]) == 0
    Path("other").mkdir()
    for name in ("med", "leg"):
        Path(f"avs/{name}.safetensors").rename(f"other/{name}.safetensors")
    there = ["med=other/med.safetensors", "leg=other/leg.safetensors"]
    command = ["verify", "merged", "--against", "merged/avops_recipe.json"]
    assert main([*command, "--av", *there]) == 0
    assert main([*command, "--av", there[0], "--av", there[1]]) == 0
    assert main([*command, "--av", there[0]]) == 2
    assert "leg" in capsys.readouterr().err
