"""Merges into one output at the same time: each is whole or not there, and never a mixture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from avops.disk import Staging, write_file
from faults.nursery import Ending, Nursery
from faults.world import World, stages, tree

ROUNDS = 5
LAMS = (1.0, 2.0)


def race(nursery: Nursery, world: World, out: Path, gate: Path, *, force: bool) -> list[Ending]:
    """Two merges with different λ, which are let go after both have planned."""
    started = [
        nursery.start(world.scenario(out, lams=(lam,), options={"force": force}, gate=str(gate)))
        for lam in LAMS
    ]
    gate.touch()
    return [nursery.wait(child) for child in started]


@pytest.mark.parametrize("force", [False, True], ids=["", "force"])
@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_two_merges_at_once(
    nursery: Nursery, world: World, tmp_path: Path, name: str, force: bool
) -> None:
    whole = []
    for lam in LAMS:
        out = tmp_path / f"{lam}" / name
        assert not nursery.run(world.scenario(out, lams=(lam,))).error[0]
        whole.append(tree(out))
    assert whole[0].keys() == whole[1].keys()
    for number in range(ROUNDS):
        # Its parents are made by both, too.
        out = tmp_path / f"{number}/new/deep" / name
        endings = race(nursery, world, out, tmp_path / f"go{number}", force=force)
        found = tree(out)
        assert found in whole
        assert stages(out) == []
        assert len(os.listdir(out.parent)) == (2 if out.suffix else 1)
        failed = [ending for ending in endings if ending.error[0]]
        if force:
            assert not failed
            continue
        (loser,) = failed
        kind, message, code = loser.error
        assert (kind, code) == ("OutputError", 2)
        assert "already exists; choose another -o, or replace it with --force" in message
        winner = 1 - endings.index(loser)
        assert found == whole[winner]


def test_a_dozen_over_one_earlier_output(nursery: Nursery, world: World, tmp_path: Path) -> None:
    """With --force each replaces what is there; the last one stays."""
    out, gate = tmp_path / "x/out", tmp_path / "go"
    assert not nursery.run(world.scenario(out, lams=(0.25,))).error[0]
    lams = [round(0.5 + n / 8, 3) for n in range(12)]
    started = [
        nursery.start(world.scenario(out, lams=(lam,), options={"force": True}, gate=str(gate)))
        for lam in lams
    ]
    gate.touch()
    assert all(not nursery.wait(child).error[0] for child in started)
    found = tree(out)
    assert os.listdir(out.parent) == ["out"]
    for lam in lams:
        again = tmp_path / f"{lam}/out"
        assert not nursery.run(world.scenario(again, lams=(lam,))).error[0]
        if tree(again) == found:
            return
    raise AssertionError("the output is a mixture")


def test_a_parent_that_another_run_makes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question whether it is there and the making of it."""
    real = Path.mkdir

    def mkdir(path: Path, *args: object, **options: object) -> None:
        if path.name in ("new", "deep"):
            os.mkdir(path)
        real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    write_file(tmp_path / "new/deep/x", b"data")
    assert (tmp_path / "new/deep/x").read_bytes() == b"data"
    # What another run has made is not removed when this one fails.
    with pytest.raises(RuntimeError), Staging(tmp_path / "a/new/x", directory=False):
        raise RuntimeError
    assert os.listdir(tmp_path / "a") == ["new"]
