"""avops extract with transforms, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from avops.cli.main import main
from avops.disk import Staging
from avops.kernels.transforms import reference
from small_project import SmallProject

ALIGNED = tuple(f"aligned/{name}.safetensors" for name in ("med", "fin", "leg"))


def avops(*argv: str, code: int = 0) -> None:
    assert main(["extract", "base.safetensors", *argv]) == code


def result(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    avops(*argv, "--json")
    return json.loads(capsys.readouterr().out)


def differences(project: SmallProject, name: str) -> dict[str, np.ndarray]:
    return {
        key: (project.aligned[name][key].float() - tensor.float()).numpy().reshape(-1)
        for key, tensor in project.base.items()
    }


def same(path: str, expected: dict[str, np.ndarray]) -> bool:
    found = load_file(path)
    return found.keys() == expected.keys() and all(
        found[name].numpy().tobytes() == values.tobytes() for name, values in expected.items()
    )


def test_trim(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, ALIGNED[0], "--trim", ".2", "-o", "t.safetensors")
    deltas = differences(project, "med")
    assert same(
        "t.safetensors", {n: reference.trim(d, int(d.size * 0.2)) for n, d in deltas.items()}
    )
    (found,) = data["outputs"]
    assert (found["out"], found["transforms"]) == ("t.safetensors", "trim .2 per tensor")
    assert found["elements"] == sum(d.size for d in deltas.values())
    assert 0.8 <= found["zero_share"] < 0.81
    avops(ALIGNED[0], "--trim", ".2", "--trim-over", "vector", "-o", "v.safetensors")
    out = capsys.readouterr().out
    assert out.startswith(
        "v.safetensors  aligned/med.safetensors − base.safetensors, trim .2 per vector  "
    )
    assert "80.0% zeros" in out
    assert not same(
        "v.safetensors", {n: t.numpy().reshape(-1) for n, t in load_file("t.safetensors").items()}
    )


@pytest.mark.parametrize("out", ["signs", "signs/", "signs/{name}.safetensors"])
def test_sign_election(project: SmallProject, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, *ALIGNED, "--sign-elect", "-o", out)
    vectors = [differences(project, name) for name in ("med", "fin", "leg")]
    elected = {n: reference.elect([v[n] for v in vectors]) for n in project.base}
    for number, name in enumerate(("med", "fin", "leg")):
        assert same(f"signs/{name}.safetensors", {n: d[number] for n, d in elected.items()})
        assert data["outputs"][number]["out"] == f"signs/{name}.safetensors"
    assert sorted(os.listdir("signs")) == ["fin.safetensors", "leg.safetensors", "med.safetensors"]
    assert main(["merge", "--av", "signs/med.safetensors:-.5", "-o", "merged.safetensors"]) == 0


def test_all_together(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trim", "0.5", "--sign-elect", "--dare", "0.5", "--seed", "3"]
    data = result(capsys, *ALIGNED, *options, "-o", "all-{name}.safetensors")
    assert [found["transforms"] for found in data["outputs"]] == [
        f"trim 0.5 per tensor, sign-elect among 3, dare 0.5 seed {3 + k}" for k in range(3)
    ]
    assert main(["inspect", "all-fin.safetensors", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["checkpoints"][0]["metadata"]
    assert shown["avops.transforms"] == data["outputs"][1]["transforms"]


def test_rank(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, ALIGNED[1], "--rank", "4", "-o", "lora")
    (found,) = data["outputs"]
    assert 0 < found["kept_norm"] < found["kept_norm_of_matrices"] < 1
    assert len(found["kept_norm_by_tensor"]) == data["tensors"]
    assert any("left out (an embedding)" in note for note in data["notes"])
    assert main(["merge", "--av", "lora:.5", "-o", "merged.safetensors"]) == 0
    assert main(["verify", "lora"]) == 0
    capsys.readouterr()
    assert main(["inspect", "lora"]) == 0
    assert "LoRA adapter, rank 4, alpha 4, scale alpha/rank" in capsys.readouterr().out
    avops(*ALIGNED, "--sign-elect", "--rank", "2", "-o", "loras")
    assert sorted(os.listdir("loras")) == ["fin", "leg", "med"]
    assert "of their norm kept" in capsys.readouterr().out


def test_a_name_in_the_output(project: SmallProject) -> None:
    """Of directories called model.safetensors it is the directory's; plain extractions, too."""
    Path("runs/med").mkdir(parents=True)
    Path("runs/med/model.safetensors").write_bytes(Path(ALIGNED[0]).read_bytes())
    avops("runs/med/model.safetensors", "-o", "{name}-av.safetensors")
    assert Path("med-av.safetensors").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trim", "1.5"], "--trim: the share kept is '1.5', expected more than 0 and at most 1"),
        (["--dare", "1"], "--dare: the share dropped is '1', expected more than 0 and less than 1"),
        (["--sign-elect"], "expected two or more ALIGNED"),
        ([ALIGNED[1]], "without --sign-elect, expected one"),
        ([ALIGNED[1], "--sign-elect"], "one file for 2 ALIGNED, expected a directory, or a temp"),
        (["--seed", "1"], "--seed without --dare, which it belongs to"),
        (["--trim-over", "vector"], "--trim-over without --trim, which it belongs to"),
        (["--rank", "2"], "a file, but a LoRA adapter is a directory"),
        (["--rank", "0"], "--rank: 0, expected 1 to"),
    ],
)
def test_mistakes(
    project: SmallProject, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir())
    avops(ALIGNED[0], *argv, "-o", "x.safetensors", code=2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert sorted(os.listdir()) == before


def test_an_existing_output(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    for force in ([], ["--force"]):
        avops(ALIGNED[0], "--trim", ".5", "-o", "x.safetensors", *force)
    avops(ALIGNED[0], "--trim", ".5", "-o", "x.safetensors", code=2)
    assert (
        "already exists; choose another -o, or replace it with --force" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "last"),
    [(["--trim", ".5", "-o", "x.safetensors"], 1), (["--rank", "2", "-o", "x"], 3)],
)
def test_an_interrupt(
    project: SmallProject,
    options: list[str],
    last: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C midway, at a write: nothing is left."""
    write, writes = Staging.write, []

    def interrupted(self: Staging, *args: Any) -> None:
        writes.append(args)
        if len(writes) >= last:
            raise KeyboardInterrupt
        write(self, *args)

    monkeypatch.setattr(Staging, "write", interrupted)
    before = sorted(os.listdir())
    avops(ALIGNED[0], *options, code=130)
    assert capsys.readouterr().err.splitlines()[-1].startswith("avops extract: interrupted")
    assert len(writes) >= last
    assert sorted(os.listdir()) == before


def test_no_torch(project: SmallProject) -> None:
    """Not even for --rank."""
    code = (
        "import sys; from avops.cli.main import main; "
        f"main(['extract', 'base.safetensors', {ALIGNED[0]!r}, '--trim', '.5', '--dare', '.5', "
        "'-o', 'a.safetensors']); "
        f"main(['extract', 'base.safetensors', {ALIGNED[0]!r}, '--rank', '2', '-o', 'lora']); "
        "print([m for m in ('torch', 'triton', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
