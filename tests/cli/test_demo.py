"""`avops demo`: the whole path, and a second run that repeats nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from avops.cli.main import main
from avops.demo import World

OUTPUTS = [
    "avs/med.safetensors",
    "avs/fin.safetensors",
    "avs/leg.safetensors",
    "lawyer.safetensors",
    "figures/med.png",
    "figures/med.csv",
    "figures/med.npz",
    "avops.toml",
    "world.json",
]


def test_the_demo_and_its_second_run(
    tiny: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny.directory, tmp_path / "w")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "w", "--size", "tiny"]) == 0
    first = capsys.readouterr().out
    assert Path.cwd() == tmp_path
    times = {name: (tmp_path / "w" / name).stat().st_mtime_ns for name in OUTPUTS}
    assert (
        "$ avops merge base.safetensors --av med:-1 fin:-1 leg:.6 -o lawyer.safetensors\n" in first
    )
    assert "$ avops score --levels exp,gen,avd\n" in first
    assert "Pref.Acc against λ of med" in first

    assert main(["demo", "w", "--size", "tiny"]) == 0
    second = capsys.readouterr().out
    assert {name: (tmp_path / "w" / name).stat().st_mtime_ns for name in OUTPUTS} == times
    assert "reusing figures/med.npz" in second
    table = first[first.index("Pref.Acc against") : first.index("figures/med.png  figures/med.csv")]
    assert table.strip() in second

    # The user's own commands work in the demo's directory, word for word.
    monkeypatch.chdir(tmp_path / "w")
    assert main(["merge", "base.safetensors", "--av", "med:-1", "fin:-1", "leg:.6"]) == 0
    assert Path("merged.safetensors").read_bytes() == Path("lawyer.safetensors").read_bytes()
    assert main(["score", "--levels", "exp,gen,avd"]) == 0
    assert main(["sweep", "--av", "med:-1:1:1"]) == 0


def test_another_seed_needs_another_directory(
    tiny: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tiny.directory), "--size", "tiny", "--seed", "2"]) == 2
    assert str(tiny.directory) in capsys.readouterr().err
