"""Ctrl-C, SIGTERM and a closed terminal, as the console script gets them; several outputs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from faults.nursery import Nursery
from faults.world import World, journaled, stages, tree

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
NAMES = ["out.safetensors", "out"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_midway_leaves_nothing(
    nursery: Nursery, world: World, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    out = tmp_path / "x" / name
    stop = [3, "signal", number]
    ending = nursery.run({"argv": world.argv(out), "block": 512, "threads": 1, "at_window": stop})
    assert ending.result["code"] == 130
    assert "avops merge: interrupted" in ending.said
    assert "Traceback" not in ending.said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_midway_with_resume_keeps_the_work(
    nursery: Nursery, world: World, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    whole, out = tmp_path / "whole" / name, tmp_path / "x" / name
    plain = nursery.run({"argv": world.argv(whole), "block": 512})
    assert plain.result["code"] == 0
    stop = [5, "signal", number]
    argv = world.argv(out, "--resume")
    ending = nursery.run({"argv": argv, "block": 512, "threads": 1, "at_window": stop})
    assert ending.result["code"] == 130
    assert os.listdir(out.parent) == [stages(out)[0].name]
    kept = journaled(out)
    # The fifth window was at work.
    assert kept in (4, 5)
    done = nursery.run({"argv": argv, "block": 512})
    assert done.result["code"] == 0
    assert done.result["computed"] == plain.result["computed"] - kept
    assert f"resumed: {kept} blocks" in done.said
    assert tree(out) == tree(whole)
    assert stages(out) == []


def test_a_signal_spares_an_earlier_output(nursery: Nursery, world: World, tmp_path: Path) -> None:
    out = tmp_path / "x/out"
    assert nursery.run({"argv": world.argv(out), "block": 512}).result["code"] == 0
    old = tree(out)
    stop = [3, "signal", signal.SIGTERM]
    argv = world.argv(out, "--force", lam=2)
    ending = nursery.run({"argv": argv, "block": 512, "threads": 1, "at_window": stop})
    assert ending.result["code"] == 130
    assert tree(out) == old
    assert os.listdir(out.parent) == ["out"]


# ---- several outputs in one read

LAMS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("name", NAMES)
def test_several_outputs_are_taken_up_together(
    nursery: Nursery, world: World, tmp_path: Path, name: str
) -> None:
    stem, suffix = Path(name).stem, Path(name).suffix
    outs = [tmp_path / "x" / f"{stem}{n}{suffix}" for n in range(3)]
    whole = [tmp_path / "whole" / out.name for out in outs]
    scenario = world.scenario(*outs, lams=LAMS, options={"resume": True})
    assert not nursery.run(world.scenario(*whole, lams=LAMS)).error[0]
    stop = [4, "signal", signal.SIGKILL]
    assert nursery.run({**scenario, "at_window": stop}).signal == signal.SIGKILL
    assert [journaled(out) for out in outs] == [3, 3, 3]
    # One of them loses a block, so its window is read again, for this one only.
    journal = stages(outs[1])[0] / "avops-journal"
    journal.write_bytes(journal.read_bytes()[:-1])
    done = nursery.run(scenario)
    assert not done.error[0], done
    assert done.result["computed"] == done.result["windows"] - 2
    assert "resumed: 8 blocks of a killed run were there" in done.result["notes"]
    assert [tree(out) for out in outs] == [tree(out) for out in whole]
    assert all(stages(out) == [] for out in outs)
    # Candidates are equal to merges of their own.
    alone = tmp_path / "alone" / outs[2].name
    assert not nursery.run(world.scenario(alone, lams=LAMS[2:])).error[0]
    assert tree(alone) == tree(outs[2])


def test_several_outputs_killed_at_every_step_of_publishing(
    nursery: Nursery, world: World, tmp_path: Path
) -> None:
    """Each is whole or not there, and what is there already stays."""
    outs = [tmp_path / "whole" / f"out{n}.safetensors" for n in range(2)]
    whole = nursery.run(world.scenario(*outs, lams=LAMS[:2], trace=True)).result
    trace, expected = whole["trace"], [tree(out) for out in outs]
    for step in range(trace.index("fdatasync"), len(trace)):
        where = f"step {step}: {trace[step]}"
        now = [tmp_path / f"{step}" / out.name for out in outs]
        scenario = world.scenario(*now, lams=LAMS[:2])
        killed = nursery.run({**scenario, "crash": [step, "before"]})
        assert killed.signal == signal.SIGKILL
        for out, files in zip(now, expected, strict=True):
            assert not out.exists() or tree(out) == files, where
        done = nursery.run({**scenario, "options": {"resume": True}})
        assert not done.error[0], (where, done)
        assert [tree(out) for out in now] == expected, where
        assert len(os.listdir(now[0].parent)) == 4, where
