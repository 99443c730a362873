"""avops apply: a winner's recipe, printed or merged, and only when it was measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    assert shown.out.splitlines()[0] == "--av " + " ".join(data["av"])
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
    for words in (["--dtype", "bf16"], ["--rounding", "nearest"], ["--seed", "8"]):
        out = f"{words[1]}.safetensors"
        rounding = [] if words[0] != "--seed" else ["--rounding", "dither"]
        assert main(["apply", "run", "--want", want, "-o", out, *words, *rounding]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "measured as the base's dtype, dither, seed 7" in said, words
        assert "confirmed:" not in said


@pytest.mark.parametrize("words", [["--force"], ["--seed", "3"], ["--base", "base.safetensors"]])
def test_no_option_of_a_merge_is_passed_over(
    run: list[Finding], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["apply", "run", "--want", of(run, "confirmed"), *words]) == 2
    assert "without -o OUT" in capsys.readouterr().err
