"""What users' files, words, and terminals are like."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avops.cli import hub
from avops.cli.main import main
from small_project import SmallProject

WORD_FOR_WORD = ["merge", "base.safetensors", "--av", "med:-1", "fin:-1", "leg:.6"]


def avops(*argv: str, code: int = 0) -> None:
    assert main(list(argv)) == code


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_base_among_the_terms_is_said(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("avops.toml").unlink()
    avops("merge", "--av", "avs/med.safetensors:1", "base.safetensors", code=2)
    said = capsys.readouterr().err
    assert "--av base.safetensors: no λ" in said
    assert "put the base before --av" in said


def test_avops_toml_of_other_editors(
    project: SmallProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mark before the text, Windows' line ends, and a home directory."""
    monkeypatch.setenv("HOME", str(project.directory))
    text = "\ufeff" + Path("avops.toml").read_text().replace('"avs/med', '"~/avs/med')
    Path("avops.toml").write_bytes(text.replace("\n", "\r\n").encode())
    avops(*WORD_FOR_WORD)
    Path("avops.toml").write_bytes(text.encode("utf-16"))
    capsys.readouterr()
    avops(*WORD_FOR_WORD, code=2)
    assert "avops.toml: not UTF-8: " in capsys.readouterr().err


def test_json_where_stdout_is_ascii(project: SmallProject, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", errors="replace"))
    avops("merge", "--av", "med:1", "-o", "é.safetensors", "--json")
    assert json.loads(shown.getvalue())["out"] == "é.safetensors"


def test_a_closed_stderr_is_no_failure(project: SmallProject) -> None:
    command = f"exec {sys.executable} -m avops merge --av med:1 -o x.safetensors 2>&-"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True)
    assert done.returncode == 0
    assert b"x.safetensors  base.safetensors + med:1" in done.stdout


def test_extract_and_inspect_take_hub_ids(
    project: SmallProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = {"org/base": "base.safetensors", "org/fin": "aligned/fin.safetensors"}
    monkeypatch.setattr(hub, "local", lambda text, **_: fetched.get(text, text))
    avops("extract", "org/base", "org/fin", "-o", "one.safetensors")
    avops("extract", "org/base", "org/fin", "--trim", ".2", "-o", "{name}-trimmed.safetensors")
    assert Path("fin-trimmed.safetensors").exists()
    shown = capsys.readouterr().out
    assert "one.safetensors  org/fin − org/base  " in shown
    avops("extract", "base.safetensors", "aligned/fin.safetensors", "-o", "two.safetensors")
    one, two = (load_file(f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(raw(one[name]) == raw(two[name]) for name in one)
    avops("inspect", "org/fin", "--base", "org/base")
    assert "norm of the alignment vectors" in capsys.readouterr().out


def test_advice_for_verbs_without_an_output_option(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rooms below know no verbs: what they advise is put into words that the verb has."""
    Path("scores.csv").write_text("precious")
    avops("score", "--table", "scores.csv", code=2)
    assert "scores.csv: already exists; choose another place, or" in capsys.readouterr().err
    Path("merged.safetensors").write_text("precious")
    avops(*WORD_FOR_WORD, code=2)
    assert "merged.safetensors: already exists; choose another -o, or" in capsys.readouterr().err
