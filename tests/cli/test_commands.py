"""The commands as a user types them, in a project directory."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avops.cli.main import main
from avops.disk import RECIPE_NAME
from small_project import SmallProject

WORD_FOR_WORD = ["merge", "base.safetensors", "--av", "med:-1", "fin:-1", "leg:.6"]


def avops(*argv: str, code: int = 0) -> None:
    assert main(list(argv)) == code


def result(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The one JSON object on stdout."""
    capsys.readouterr()
    avops(*argv, "--json")
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def contract(project: SmallProject, name: str, lams: dict[str, float]) -> torch.Tensor:
    """Deltas first, base last, in float32, one rounding."""
    base = project.base[name].float()
    total = None
    for av, lam in lams.items():
        product = torch.tensor(lam) * (project.aligned[av][name].float() - base)
        total = product if total is None else total + product
    assert total is not None
    return (base + total).to(project.base[name].dtype)


def test_merge_word_for_word(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    avops(*WORD_FOR_WORD)
    assert "merged.safetensors  base.safetensors + med:-1 fin:-1 leg:.6" in capsys.readouterr().out
    merged = load_file("merged.safetensors")
    assert set(merged) == set(project.base)
    for name, tensor in merged.items():
        assert torch.equal(tensor, contract(project, name, {"med": -1, "fin": -1, "leg": 0.6}))


def test_score_word_for_word(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    avops("score", "--levels", "exp,gen,avd")
    out = capsys.readouterr().out
    assert out.startswith("base.safetensors on items.jsonl\nPref.Acc per level [95 % Wilson")
    header = out.splitlines()[2].split()
    assert header == ["domain", "items", "exp", "gen", "avd", "ties", "dominant"]
    assert [line.split()[0] for line in out.splitlines()[3:7]] == ["med", "fin", "leg", "all"]


def test_score_of_a_recipe_is_score_of_its_merge(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops(*WORD_FOR_WORD)
    terms = ["med:-1", "fin:-1", "leg:.6"]
    live = result(capsys, "score", "--av", *terms, "--table", "live.npz")
    written = result(capsys, "score", "merged.safetensors", "--table", "written.npz")
    assert live["domains"] == written["domains"]
    with np.load("live.npz") as a, np.load("written.npz") as b:
        assert a["scores"].tobytes() == b["scores"].tobytes()
    plain = result(capsys, "score")
    assert plain["domains"] != live["domains"]


def test_score_of_a_directory_is_score_of_its_file(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result(capsys, "score", "hf")["domains"] == result(capsys, "score")["domains"]


def test_repeated_av_and_paths(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["base.safetensors", "--av", "med:-1", "aligned/fin.safetensors:-0.4"]
    two = ["--av", "med:-1", "--av", "fin:-0.4", "-o", "two.safetensors"]
    avops("merge", *one)
    avops("merge", *two)
    assert Path("merged.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


def test_merge_to_a_directory_loads_in_transformers(project: SmallProject) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    avops("merge", "--av", "med:.5", "-o", "out")
    model = AutoModelForCausalLM.from_pretrained("out")
    AutoTokenizer.from_pretrained("out")
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, contract(project, name, {"med": 0.5}))


def test_dry_run_writes_nothing(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir())
    data = result(capsys, *WORD_FOR_WORD, "--dry-run")
    assert data["dry_run"] is True
    assert data["files"] == ["merged.safetensors", "merged.avops_recipe.json"]
    avops(*WORD_FOR_WORD, "--dry-run")
    assert "would merge base.safetensors + med:-1 fin:-1 leg:.6" in capsys.readouterr().out
    assert sorted(os.listdir()) == before


def test_merge_json(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, *WORD_FOR_WORD)
    assert data["out"] == "merged.safetensors"
    assert data["bytes_written"] == sum(os.path.getsize(name) for name in data["files"])
    assert 0 <= data["unchanged_share"] < 1
    assert json.loads(Path("merged.avops_recipe.json").read_text()) == data["recipe"]


def test_extract(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(
        capsys, "extract", "base.safetensors", "aligned/fin.safetensors", "-o", "a/fin.safetensors"
    )
    assert (data["dtype"], data["tensors"]) == ("F32", len(project.base))
    for name, tensor in load_file("a/fin.safetensors").items():
        expected = project.aligned["fin"][name].float() - project.base[name].float()
        assert torch.equal(tensor, expected)
    avops("merge", "--av", "a/fin.safetensors:.7", "-o", "stored.safetensors")
    avops("merge", "--av", "fin:.7", "-o", "live.safetensors")
    assert Path("stored.safetensors").read_bytes() == Path("live.safetensors").read_bytes()


def test_extract_of_the_same_model_says_so(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("extract", "base.safetensors", "hf", "-o", "zero.safetensors")
    assert "every difference is 0" in capsys.readouterr().err


def test_extract_to_a_directory_and_back(project: SmallProject) -> None:
    avops("extract", "hf", "aligned/fin.safetensors", "-o", "avdir", "--dtype", "bf16")
    avops("extract", "hf", "aligned/fin.safetensors", "-o", "avdir", "--dtype", "f32", "--force")
    assert sorted(os.listdir("avdir")) == [RECIPE_NAME, "model.safetensors"]
    avops("merge", "--av", "avdir:.7", "-o", "stored.safetensors")
    avops("merge", "--av", "fin:.7", "-o", "live.safetensors")
    assert Path("stored.safetensors").read_bytes() == Path("live.safetensors").read_bytes()


def test_extract_refuses_a_vector(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("extract", "base.safetensors", "avs/med.safetensors", "-o", "x.safetensors", code=2)
    assert "already an alignment vector" in capsys.readouterr().err


def test_inspect(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, "inspect")
    assert [vector["name"] for vector in data["vectors"]] == ["med", "fin", "leg"]
    deltas = {
        av: torch.cat(
            [
                (project.aligned[av][n].double() - project.base[n].double()).flatten()
                for n in project.base
            ]
        )
        for av in ("med", "fin", "leg")
    }
    for vector in data["vectors"]:
        delta = deltas[vector["name"]]
        # float32 differences of bf16 values are exact here; only float64 sums are reordered,
        # over 1e4 elements: relative error below 1e4 * 2^-53.
        assert vector["norm"] == pytest.approx(float(delta.norm()), rel=2e-12)
        for other, cosine in vector["cosines"].items():
            exact = torch.nn.functional.cosine_similarity(delta, deltas[other], 0)
            assert cosine == pytest.approx(float(exact), abs=4e-12)
        assert vector["zero_share"] == float((delta == 0).double().mean())
    avops("inspect", "base.safetensors")
    out = capsys.readouterr().out
    assert "model.layers.*.self_attn.q_proj.weight" in out
    assert "32×32" in out
    avops("inspect", "aligned/med.safetensors", "--base", "base.safetensors")
    assert "norm of the alignment vectors" in capsys.readouterr().out


def test_sweep(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    avops("sweep", "--av", "med:-1:1:.5", "fin:.3", "--table", "all.npz")
    out = capsys.readouterr().out
    assert "Pref.Acc against λ of med, fin:.3 fixed" in out
    rows = list(csv.DictReader(Path("sweep-med.csv").read_text().splitlines()))
    assert [row["lam"] for row in rows[::12]] == ["-1", "-0.5", "0", "0.5", "1"]
    assert Path("sweep-med.png").read_bytes().startswith(b"\x89PNG")
    with np.load("all.npz") as table:
        assert table["scores"].shape == (5, 12, 3)
        assert table["candidates"].tolist()[0] == "fin:.3 med:-1"
    single = result(capsys, "score", "--av", "fin:.3", "med:-1")
    row = next(row for row in rows if row["domain"] == "leg" and row["level"] == "gen")
    level = single["domains"]["leg"]["levels"]["gen"]
    assert float(row["mean_logprob"]) == pytest.approx(level["mean_logprob"], abs=5e-7)


def test_sweep_to_svg_json(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, "sweep", "--av", "leg:0:1:.5", "-o", "figures/leg.svg")
    assert [point["lam"] for point in data["points"]] == ["0", "0.5", "1"]
    assert "<svg" in Path("figures/leg.svg").read_text()
    avops("sweep", "--av", "leg:0:1:.5", "-o", "figures/leg.svg", code=2)
    assert "already exists" in capsys.readouterr().err
    avops("sweep", "--av", "leg:0:1:.5", "-o", "leg.gif", code=2)
    assert "expected a name ending in .png" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVOPS_BACKEND", raising=False)
    data = result(capsys, "doctor")
    chosen = {row["operation"]: row["backend"] for row in data["backends"] if row["chosen"]}
    assert set(chosen) == {"combine", "diff"}
    monkeypatch.setenv("AVOPS_BACKEND", "reference")
    data = result(capsys, "doctor")
    assert {row["backend"] for row in data["backends"] if row["chosen"]} == {"reference"}
    avops("doctor")
    assert "backend" in capsys.readouterr().out


# ---- mistakes: exit code 2, a message, no traceback, no output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["merge", "--av", "mde:1"], "did you mean med"),
        (["merge", "--av", "med:x"], "λ is 'x', expected a finite decimal number"),
        (["merge", "--av", "med:inf"], "λ is 'inf', expected a finite decimal number"),
        (["merge", "--av", "med:1", "base.safetensors"], "put the base before --av"),
        (["merge", "gone.safetensors", "--av", "med:1"], "gone.safetensors: cannot open"),
        (["merge", "--av", "med:1", "--dtype", "f8"], "--dtype: dtype 'f8', expected bf16, f16"),
        (["merge", "--av", "items.jsonl:1"], "items.jsonl: not a valid safetensors file"),
        (["score", "--levels", "exp"], "--levels exp: expected two or more different names"),
        (["score", "--levels", "exp,nope"], "nope"),
        (["score", "--data", "gone.jsonl"], "gone.jsonl"),
        (["score", "--table", "x.txt"], ".txt"),
        (["score", "--device", "cuda:99"], "--device cuda:99: cannot be used"),
        (["sweep", "--av", "med:1"], "expected exactly one term NAME:START:STOP:STEP"),
        (["inspect", "gone"], "gone"),
        (["extract", "base.safetensors", "gone", "-o", "x.safetensors"], "gone: cannot open"),
    ],
)  # fmt: skip
def test_mistakes(
    project: SmallProject, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = sorted(os.listdir())
    avops(*argv, code=2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith(f"avops {argv[0]}: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert sorted(os.listdir()) == before


def test_bad_items_name_line_and_field(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Path("items.jsonl").read_text().splitlines()
    bad = json.loads(lines[2])
    bad["responses"]["gen"] = ""
    Path("items.jsonl").write_text("\n".join([*lines[:2], json.dumps(bad)]))
    avops("score", code=2)
    err = capsys.readouterr().err
    assert "items.jsonl, line 3" in err
    assert "gen" in err
    Path("items.jsonl").write_text("")
    avops("score", code=2)
    assert "items.jsonl" in capsys.readouterr().err


def test_outside_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    avops("score", code=2)
    assert "no --data given and none in avops.toml" in capsys.readouterr().err
    avops("inspect", code=2)
    assert "no PATH given" in capsys.readouterr().err
    (tmp_path / "avops.toml").write_text("base = 1")
    avops("score", code=2)
    assert "avops.toml: base is 1" in capsys.readouterr().err


def test_debug_shows_the_traceback(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("--debug", "merge", "--av", "mde:1", code=2)
    assert "Traceback" in capsys.readouterr().err


# ---- as processes


def process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


HEAVY = "[m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules]"


def test_merging_imports_neither_torch_nor_transformers(project: SmallProject) -> None:
    argv = [*WORD_FOR_WORD, "-o", "x.safetensors"]
    done = process(
        f"import sys; import avops; from avops.cli.main import main; main({argv}); "
        f"main(['inspect']); main(['extract', 'base.safetensors', 'aligned/med.safetensors', "
        f"'-o', 'y.safetensors']); print('heavy:', {HEAVY})"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_imports_next_to_nothing() -> None:
    done = process(
        "import sys; from avops.cli.main import parser; parser().format_help(); "
        "print([m for m in ('numpy', 'torch', 'rich') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_output_that_is_not_unicode(project: SmallProject) -> None:
    done = process(
        "from avops.cli.main import entry; import sys; "
        "sys.argv = ['avops', 'merge', '--av', 'med:1']; entry()",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert Path("merged.safetensors").exists()


def test_a_reader_that_goes_away(project: SmallProject) -> None:
    command = f"{sys.executable} -m avops inspect | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
