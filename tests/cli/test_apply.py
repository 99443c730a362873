"""avops apply: a winner's recipe, printed or merged, and only when it was measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from avops.cli.main import main
from avops.disk import fingerprint, open_base, open_vector
from avops.search.identity import Identity
from avops.search.report import facts_of
from avops.search.store import Store
from avops.search.verdicts import Finding
from made_run import NAMES, make_run
from small_project import SmallProject

FILES = {
    "med": "avs/med.safetensors",
    "fin": "aligned/fin.safetensors",
    "leg": "avs/leg.safetensors",
}


@pytest.fixture
def run(project: SmallProject) -> list[Finding]:
    """A run over the small project's checkpoints; what it found."""
    parts = {"base": fingerprint(open_base("base.safetensors"))}
    for name in NAMES:
        kind = "aligned" if name == "fin" else "auto"
        parts[f"av {name}"] = fingerprint(open_vector(name, FILES[name], kind))
    parts["rounding"] = "dither, seed 7"
    make_run(Path("run"), 60, given="-1:1:.25", who=Identity(parts, {"base": "base.safetensors"}))
    with Store.read("run") as store:
        return list(facts_of(store, model=False).findings)


def of(run: list[Finding], verdict: str) -> str:
    return next(str(finding.want) for finding in run if finding.verdict == verdict)


def test_it_prints_the_winner(run: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    want = of(run, "confirmed")
    assert main(["apply", "run", "--want", want, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["want"], data["verdict"]) == (want, "confirmed")
    assert main(["apply", "run", "--want", want]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[:2] == [
        "--av " + " ".join(data["av"]),
        "to merge it as it was measured, also --rounding dither --seed 7",
    ]
    assert data["merge"] == ["--rounding", "dither", "--seed", "7"]
    assert "confirmed: margin +" in shown.out
    assert "41 % of elements unchanged" in shown.out
    assert shown.err == ""


def test_it_merges_what_was_measured(
    run: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    want = of(run, "confirmed")
    main(["apply", "run", "--want", want, "--json"])
    words = json.loads(capsys.readouterr().out)["av"]
    assert main(["apply", "run", "--want", want, "-o", "one.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"].endswith("one.safetensors")
    # The study's rounding, unless told otherwise.
    dither = ["--rounding", "dither", "--seed", "7"]
    assert main(["merge", "--av", *words, "-o", "two.safetensors", *dither]) == 0
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    nearest = ["-o", "three.safetensors", "--rounding", "nearest"]
    assert main(["apply", "run", "--want", want, *nearest]) == 0
    assert Path("three.safetensors").read_bytes() != Path("two.safetensors").read_bytes()


def test_a_dry_run_writes_nothing(run: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    want = of(run, "confirmed")
    assert main(["apply", "run", "--want", want, "-o", "one.safetensors", "--dry-run"]) == 0
    assert "would merge base.safetensors" in capsys.readouterr().out
    assert not Path("one.safetensors").exists()


def test_reached_alone_is_said(run: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    want = of(run, "reached")
    assert main(["apply", "run", "--want", want]) == 0
    err = capsys.readouterr().err
    assert f"{want} was reached, but not confirmed: on the held-out items it" in err


def test_nothing_is_made_up(run: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    finding = next(finding for finding in run if finding.verdict == "not found")
    assert main(["apply", "run", "--want", str(finding.want), "-o", "one.safetensors"]) == 2
    err = capsys.readouterr().err
    assert f"--want {finding.want}: not found in run (no measured point hits it; others may)" in err
    assert "the nearest is --av med:" in err
    assert not Path("one.safetensors").exists()


def test_all_is_no_combination(run: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "run", "--want", "all"]) == 2
    assert "--want all: expected one combination of run; `avops rep" in capsys.readouterr().err


def test_a_combination_that_was_not_asked_for(
    run: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", "run", "--want", "med=avd", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["want"] == "med=avd"
    assert data["point"] is not None
    assert main(["apply", "run", "--want", "med=avd>=1,fin=exp>=1,leg=gen>=1"]) == 2
    capsys.readouterr()
    assert main(["apply", "run", "--want", "med=nothing"]) == 2
    assert "no level 'nothing', expected one of exp, gen, avd" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "path"), [("base", "base.safetensors"), *FILES.items()])
def test_other_checkpoints_are_refused(
    run: list[Finding], name: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)
    want = of(run, "confirmed")
    assert main(["apply", "run", "--want", want, "-o", "one.safetensors"]) == 2
    err = capsys.readouterr().err
    part = name if name == "base" else f"av {name}"
    assert f"{part} at {path}: fingerprint" in err
    assert "of the checkpoint that was measured in run" in err
    assert not Path("one.safetensors").exists()
    assert main(["apply", "run", "--want", want]) == 0  # printing needs none of them


def test_another_place_of_the_base(run: list[Finding]) -> None:
    Path("base.safetensors").rename("moved.safetensors")
    want = of(run, "confirmed")
    command = ["apply", "run", "--want", want, "-o", "one.safetensors"]
    assert main(command) == 2
    assert main([*command, "--base", "moved.safetensors"]) == 0


def test_options_of_a_merge_need_an_output(
    run: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", "run", "--want", of(run, "confirmed"), "--dry-run"]) == 2
    assert "without -o OUT" in capsys.readouterr().err


def test_rounding_otherwise_than_measured_is_said(
    run: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    want = of(run, "confirmed")
    assert main(["apply", "run", "--want", want, "-o", "same.safetensors"]) == 0
    assert "measured as" not in capsys.readouterr().err
    for words in (["--dtype", "f32"], ["--rounding", "nearest"], ["--seed", "8"]):
        out = f"{words[1]}.safetensors"
        rounding = [] if words[0] != "--seed" else ["--rounding", "dither"]
        assert main(["apply", "run", "--want", want, "-o", out, *words, *rounding]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "measured as bf16, dither, seed 7" in said, words
        assert "confirmed:" not in said


def test_the_dtype_of_the_base_is_no_other_dtype(
    run: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    want = of(run, "confirmed")
    assert main(["apply", "run", "--want", want, "-o", "one.safetensors"]) == 0
    assert main(["apply", "run", "--want", want, "-o", "two.safetensors", "--dtype", "bf16"]) == 0
    assert "measured as" not in capsys.readouterr().err
    for path in ("one.safetensors", "two.safetensors"):
        found = {tensor.dtype.tag for tensor in open_base(path).tensors.values()}
        assert found == {"BF16"}


def bf16_run_over_f32(directory: Path) -> str:
    """A run that computed in bf16 over a base in float32. Returns a combination that it found."""
    base = load_file("base.safetensors")
    save_file({name: t.float() for name, t in base.items()}, "wide.safetensors", {"format": "pt"})
    parts = {"base": fingerprint(open_base("wide.safetensors")), "dtype": "bf16"}
    for name in NAMES:
        kind = "aligned" if name == "fin" else "auto"
        parts[f"av {name}"] = fingerprint(open_vector(name, FILES[name], kind))
    parts["rounding"] = "nearest"
    shown = {"base": "wide.safetensors"}
    make_run(directory, 60, given="-1:1:.25", who=Identity(parts, shown))
    with Store.read(directory) as store:
        return of(list(facts_of(store, model=False).findings), "confirmed")


def test_a_search_in_bf16_is_written_in_bf16(
    project: SmallProject, capsys: pytest.CaptureFixture[str]
) -> None:
    want = bf16_run_over_f32(Path("narrow"))
    assert main(["apply", "narrow", "--want", want]) == 0
    assert "to merge it as it was measured, also --dtype bf16" in capsys.readouterr().out
    assert main(["apply", "narrow", "--want", want, "-o", "one.safetensors"]) == 0
    err = capsys.readouterr().err
    assert "in bf16, as measured (the base is f32: --dtype f32)" in err
    assert "confirmed: " in err
    main(["apply", "narrow", "--want", want, "--json"])
    words = json.loads(capsys.readouterr().out)
    given = ["--av", *words["av"], *words["merge"], "-o", "two.safetensors"]
    assert main(["merge", "wide.safetensors", *given]) == 0
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    capsys.readouterr()
    other = ["-o", "three.safetensors", "--dtype", "f32"]
    assert main(["apply", "narrow", "--want", want, *other]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "written as f32, nearest, measured as bf16, nearest" in err
    assert "confirmed: " not in err


def run_here(run: Path, directory: Path) -> None:
    """What `avops search` notes of where it runs."""
    with Store.read(run) as store:
        study, identity = store.study, store.identity
    with Store.open(run, study, identity) as store:
        where = {"directory": str(directory), "from_run": ".."}
        store.note("command", words=["avops", "search"], version="1", **where)


def test_it_works_from_elsewhere(
    run: list[Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = of(run, "confirmed")
    project = Path.cwd()
    Path("avs/fin.safetensors").hardlink_to("aligned/fin.safetensors")  # as the made run has it
    assert main(["apply", "run", "--want", want, "-o", "one.safetensors"]) == 0
    expected = (project / "one.safetensors").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # The run taken away alone: its note leads to the project.
    run_here(project / "run", project)
    (project / "run").rename(elsewhere / "run")
    monkeypatch.chdir(elsewhere)
    assert main(["apply", "run", "--want", want, "-o", "two.safetensors"]) == 0
    assert (elsewhere / "two.safetensors").read_bytes() == expected
    # The run moved together with the project: what is around it is followed.
    (elsewhere / "run").rename(project / "run")
    moved = tmp_path / "moved"
    project.rename(moved)
    out = str(elsewhere / "three.safetensors")
    assert main(["apply", str(moved / "run"), "--want", want, "-o", out]) == 0
    assert Path(out).read_bytes() == expected


def test_inputs_can_be_named(
    run: list[Finding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    want = of(run, "confirmed")
    project = Path.cwd()
    assert main(["apply", "run", "--want", want, "-o", "one.safetensors"]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (project / "run").rename(elsewhere / "run")
    monkeypatch.chdir(elsewhere)
    command = ["apply", "run", "--want", want, "-o", "two.safetensors"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert f"base: base.safetensors is not in {elsewhere}, where it was searched" in err
    assert "say where it is now: --base PATH" in err
    command += ["--base", str(project / "base.safetensors")]
    assert main(command) == 2
    assert "av med: avs/med.safetensors is not in" in capsys.readouterr().err
    paths = [f"{name}={project / path}" for name, path in FILES.items()]
    assert main([*command, "--av", *paths]) == 0
    same = (project / "one.safetensors").read_bytes()
    assert (elsewhere / "two.safetensors").read_bytes() == same
    capsys.readouterr()
    swapped = [f"med={project / FILES['leg']}", f"leg={project / FILES['med']}", paths[1]]
    assert main([*command, "--force", "--av", *swapped]) == 2
    err = capsys.readouterr().err
    assert f"av med at {project / FILES['leg']}: fingerprint" in err
    assert "give that one with --av med=PATH" in err
    assert main([*command, "--av", "nix=med.safetensors"]) == 2
    assert "expected NAME=PATH with a name of the search: med, fin, leg" in capsys.readouterr().err
    assert main([*command, "--av", "med=a", "med=b"]) == 2
    assert "med is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--force"], ["--seed", "3"], ["--base", "base.safetensors"], ["--av", "med=med.safetensors"]],
)
def test_no_option_of_a_merge_is_passed_over(
    run: list[Finding], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["apply", "run", "--want", of(run, "confirmed"), *words]) == 2
    assert "without -o OUT" in capsys.readouterr().err
