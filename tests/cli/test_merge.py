"""`avops merge` with everything people ask of it, as they type it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avops.cli.main import main
from avops.disk import open_checkpoint
from small_project import SmallProject

AVS = ["--av", "med:-1", "fin:.5"]


def avops(*argv: str, code: int = 0) -> None:
    assert main(list(argv)) == code


def result(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    avops(*argv, "--json")
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def sha(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_several_lams_through_a_template(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("merge", "--av", "med:-1,0,.5", "fin:.5", "-o", "out/med{med}.safetensors")
    text = capsys.readouterr().out
    assert "3 outputs in" in text
    names = {f"med{lam}.safetensors" for lam in ("-1", "0", "0.5")}
    recipes = {f"med{lam}.avops_recipe.json" for lam in ("-1", "0", "0.5")}
    assert set(os.listdir("out")) == names | recipes
    avops("merge", *AVS, "-o", "single.safetensors")
    assert sha("out/med-1.safetensors") == sha("single.safetensors")
    found = result(capsys, "merge", "--av", "med:0:1:.5", "-o", "dir-{med}")
    assert found["outs"] == ["dir-0", "dir-0.5", "dir-1"]
    assert [o["lams"] for o in found["outputs"]] == [{"med": lam} for lam in ("0", "0.5", "1")]
    assert found["outputs"][1]["effective_lam"][0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--av", "med:-1,1"], "2 candidates and no -o, expected a template"),
        (["--av", "med:-1,1", "-o", "x"], "{med} is not in the template"),
        (["--av", "med:1", "-o", "x-{leg}"], "no term is called 'leg'"),
        (["--av", "med:1", "-o", "-"], "-o '-': expected a file.safetensors or a directory"),
        (["--av", "med:1", "-o", ""], "-o '': expected a file.safetensors or a directory"),
        (["nosuch.yml"], "nosuch.yml: cannot be read: No such file or directory\n"),
        (["--av", "med:1", "-o", "x.safetensors/"], "a directory named like a file"),
        (["--av", "med:1", "--where", "nothing*=2"], "matches none of the"),
        (["--av", "med:1", "--where", "fin:*=2"], "no term has this name"),
        (["--av", "med:1", "--where", "*"], "expected [AV:]GLOB=FACTOR"),
        (["--av", "med:1", "--skip", ""], "the pattern is empty"),
        ([], "no --av given"),
    ],
)
def test_mistakes(
    project: SmallProject, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = sorted(os.listdir())
    avops("merge", *argv, code=2)
    assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == before


def test_where_and_skip(project: SmallProject, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--where", "model.layers.0-0.*=0.5", "--skip", "*norm*"]
    avops("merge", *AVS, *rules, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("λ per tensor") :]
    assert table[1].split() == ["med", "fin", "tensors", "the", "first", "of", "them"]
    assert ["-0.5", "0.25", "7"] in [row.split()[:3] for row in table]
    assert ["0", "0", "5"] in [row.split()[:3] for row in table]
    found = result(capsys, "merge", *AVS, *rules, "--dry-run")
    assert found["lams"]["model.layers.0.mlp.up_proj.weight"] == {"med": [-0.5], "fin": [0.25]}
    assert "model.norm.weight" not in found["lams"]
    assert found["tensors_copied"] == 5
    avops("merge", *AVS, *rules)
    base, merged = open_checkpoint("base.safetensors"), open_checkpoint("merged.safetensors")
    data = {c.path.name: c.path.read_bytes() for c in (base, merged)}
    for name, tensor in base.tensors.items():
        part = slice(tensor.offset, tensor.offset + tensor.nbytes)
        same = data["base.safetensors"][part] == data["merged.safetensors"][part]
        assert same == ("norm" in name)


def test_a_dry_run_is_light_and_tells_what_it_needs(project: SmallProject) -> None:
    code = (
        "import sys; from avops.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules); exit(code)"
    )
    argv = [sys.executable, "-c", code, "merge", *AVS, "--dry-run"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {"tensors", "reads", "writes", "memory", "time", "files"}
    assert "cached" in rows["reads"]
    assert "MB" in rows["memory"]
    assert not Path("merged.safetensors").exists()


def test_a_recipe_file_repeats_its_merge(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--where", "*mlp*=0.3", "--dtype", "f16"]
    avops("merge", "hf", *AVS, *flags, "-o", "first")
    # The recipe names the AVs as published: with their own paths, relative to here.
    avops("merge", "first/avops_recipe.json", "-o", "again")
    for name in sorted(os.listdir("first")):
        assert sha(f"first/{name}") == sha(f"again/{name}"), name
    avops("merge", "first/avops_recipe.json", *AVS, code=2)
    assert "--av with first/avops_recipe.json: a config file says" in capsys.readouterr().err


MERGEKIT = """
merge_method: task_arithmetic
base_model: hf
models:
  - model: aligned-fin
    parameters: {weight: 0.5}
dtype: float32
out_dtype: bfloat16
"""


def test_mergekit_configs_run_and_are_written(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("aligned-fin").symlink_to("aligned/fin.safetensors")
    Path("config.yml").write_text(MERGEKIT)
    avops("merge", "config.yml", "-o", "one")
    avops("merge", "hf", "--av", "aligned/fin.safetensors:.5", "-o", "two", "--dtype", "bf16")
    assert sha("one/model.safetensors") == sha("two/model.safetensors")
    av = ["--av", "aligned/fin.safetensors:.5"]
    avops("merge", "hf", *av, "--to-mergekit", "ours.yml")
    assert not Path("merged").exists()
    avops("merge", "ours.yml", "-o", "three")
    assert sha("three/model.safetensors") == sha("one/model.safetensors")
    avops("merge", "hf", *av, "--to-mergekit", "ours.yml", code=2)
    assert "ours.yml: already exists" in capsys.readouterr().err
    Path("config.yml").write_text(MERGEKIT + "densty: 0.5\n")
    avops("merge", "config.yml", "-o", "four", code=2)
    assert "config.yml: unknown key 'densty'" in capsys.readouterr().err
    Path("config.yml").write_text("a: [")
    avops("merge", "config.yml", "-o", "four", code=2)
    avops("merge", "absent.yml", "-o", "four", code=2)
    assert "absent.yml: cannot be read" in capsys.readouterr().err


def test_a_path_that_cannot_be_looked_at_is_not_called_absent(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x" * 300
    avops("merge", "--av", f"{name}:1", code=2)
    assert f"{name}: cannot open the checkpoint: File name too long" in capsys.readouterr().err


def test_dither_keeps_small_updates(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    nearest = result(capsys, "merge", "--av", "med:.01", "-o", "a.safetensors")
    flags = ["--rounding", "dither", "--seed", "7"]
    dither = result(capsys, "merge", "--av", "med:.01", *flags, "-o", "b.safetensors")
    assert dither["unchanged_share"] < nearest["unchanged_share"]
    recipe = json.loads(Path("b.avops_recipe.json").read_text())
    assert (recipe["rounding"], recipe["seed"]) == ("dither", 7)
    avops("merge", "--av", "med:.01", *flags, "-o", "c.safetensors")
    assert sha("b.safetensors") == sha("c.safetensors")
    avops("merge", "--av", "med:.01", "--rounding", "dither", "-o", "d.safetensors")
    assert sha("b.safetensors") != sha("d.safetensors")
    avops("merge", "--av", "fin:1", *flags, "-o", "e.safetensors")
    avops("merge", "--av", "fin:1", "-o", "f.safetensors")
    assert sha("e.safetensors") == sha("f.safetensors")


# ---- verify --against


def test_verify_against_its_recipe(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--where", "*mlp*=0.3", "--rounding", "dither"]
    for out in ("merged", "merged.safetensors"):
        avops("merge", "hf", *AVS, *flags, "-o", out)
    for path, recipe in (
        ("merged", "merged/avops_recipe.json"),
        ("merged.safetensors", "merged.avops_recipe.json"),
    ):
        found = result(capsys, "verify", path, "--against", recipe)
        assert found["ok"]
        assert found["against"]["equal"]
    # The same λ without dither gives other bits, and every tensor of them is named.
    avops("merge", "hf", *AVS, *flags[:2], "-o", "other")
    avops("verify", "merged", "--against", "other/avops_recipe.json", code=1)
    out = capsys.readouterr().out
    assert "tensor 'model.layers.0.mlp.up_proj.weight': " in out
    assert "merged: not what the recipe gives (other/avops_recipe.json)" in out


def test_verify_against_names_what_was_changed(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("merge", *AVS)
    checkpoint = open_checkpoint("merged.safetensors")
    tensor = checkpoint.tensors["model.layers.1.self_attn.q_proj.weight"]
    with open("merged.safetensors", "r+b") as file:
        file.seek(tensor.offset + 6)
        file.write(b"\x01\x02\x03\x04")
    args = ["verify", "merged.safetensors", "--against", "merged.avops_recipe.json"]
    capsys.readouterr()
    assert main([*args, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["against"]["tensors"] == {tensor.name: 2}
    with open("merged.safetensors", "ab") as file:
        file.write(b"more")
    avops(*args, code=1)
    assert "merged.safetensors: " in capsys.readouterr().out


def test_verify_against_files_elsewhere(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("merge", "base.safetensors", *AVS)
    Path("moved").mkdir()
    Path("base.safetensors").rename("moved/b.safetensors")
    Path("avs/med.safetensors").rename("moved/m.safetensors")
    args = ["verify", "merged.safetensors", "--against", "merged.avops_recipe.json"]
    avops(*args, code=2)
    assert "base.safetensors is not here" in capsys.readouterr().err
    args += ["--base", "moved/b.safetensors"]
    avops(*args, code=2)
    assert "say where it is with --av NAME=PATH" in capsys.readouterr().err
    avops(*args, "--av", "mde=moved/m.safetensors", code=2)
    assert "--av mde: no term" in capsys.readouterr().err
    avops(*args, "--av", "med", code=2)
    assert "expected NAME=PATH" in capsys.readouterr().err
    avops(*args, "--av", "med=moved/m.safetensors")
    assert "bit for bit what the recipe gives" in capsys.readouterr().out


# ---- what a recipe file says, and flags beside it


def test_a_recipe_on_another_model_is_refused(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("merge", "base.safetensors", *AVS)
    Path("base.safetensors").write_bytes(Path("aligned/leg.safetensors").read_bytes())
    avops("merge", "merged.avops_recipe.json", "-o", "again.safetensors", code=2)
    err = capsys.readouterr().err
    assert "base.safetensors: has the fingerprint" in err
    assert "it is another model by now" in err
    avops("verify", "merged.safetensors", "--against", "merged.avops_recipe.json", code=2)
    assert "it is another model by now" in capsys.readouterr().err


def test_flags_beside_a_recipe_win(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("merge", *AVS)
    recipe = "merged.avops_recipe.json"
    found = result(capsys, "merge", recipe, "--rounding", "dither", "--seed", "3", "-o", "a")
    assert (found["recipe"]["rounding"], found["recipe"]["seed"]) == ("dither", 3)
    found = result(capsys, "merge", "a/avops_recipe.json", "--rounding", "nearest", "-o", "b")
    assert found["recipe"]["rounding"] == "nearest"
    found = result(capsys, "merge", "a/avops_recipe.json", "-o", "c")
    assert (found["recipe"]["rounding"], found["recipe"]["seed"]) == ("dither", 3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["merge", *AVS, "--seed", "1"], "--seed without --rounding dither"),
        (["merge", *AVS, "--to-mergekit", "-", "--rounding", "dither"], "mergekit has no word for"),
        (["merge", *AVS, "--to-mergekit", "-", "--vocab", "base"], "mergekit has no word for"),
        (["verify", "base.safetensors", "--av", "a=b"], "give it, too"),
    ],
)
def test_flags_that_say_nothing_are_refused(
    project: SmallProject, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    avops(*argv, code=2)
    assert message in capsys.readouterr().err


def test_two_outputs_in_one_place_are_refused(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    avops("merge", "--av", "med:-1,1", "-o", "m{med}.safetensors")
    Path("m1.safetensors").unlink()
    Path("m1.safetensors").symlink_to("m-1.safetensors")
    avops("merge", "--av", "med:-1,1", "-o", "m{med}.safetensors", "--force", code=2)
    assert "m1.safetensors: the same place as m-1.safetensors" in capsys.readouterr().err


def test_resume_goes_on_after_the_outputs_that_are_finished(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["merge", "--av", "med:-1,1", "-o", "m{med}"]
    avops(*args)
    before = {name: sha(f"m-1/{name}") for name in os.listdir("m-1")}
    wanted = {name: sha(f"m1/{name}") for name in os.listdir("m1")}
    shutil.rmtree("m1")
    avops(*args, code=2)
    capsys.readouterr()
    avops(*args, "--resume")
    assert "m-1 was finished already" in capsys.readouterr().err
    assert {name: sha(f"m-1/{name}") for name in os.listdir("m-1")} == before
    assert {name: sha(f"m1/{name}") for name in os.listdir("m1")} == wanted
    (Path("m-1") / "config.json").write_text("changed by hand")
    shutil.rmtree("m1")
    avops(*args, "--resume", code=2)
    assert "m-1: already exists" in capsys.readouterr().err


def test_dither_without_effect_is_said(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    dither = ["merge", "--av", "med:.5", "--rounding", "dither", "-o"]
    avops(*dither, "a.safetensors")
    assert "changes nothing" not in capsys.readouterr().err
    avops(*dither, "b.safetensors", "--dtype", "f32")
    assert "--rounding dither changes nothing in float32" in capsys.readouterr().err


def test_mergekit_reads_directories(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["merge", "--av", "aligned/fin.safetensors:.5", "--to-mergekit", "-"]
    avops(*command)
    said = capsys.readouterr().err
    for path in ("base.safetensors", "aligned/fin.safetensors"):
        assert f"note: {path}: a file, and mergekit reads directories" in said
