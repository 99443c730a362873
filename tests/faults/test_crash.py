"""SIGKILL before every single step that changes the disk, and halfway through every write.

After each: the target is untouched or complete, and nothing else is left but a staging directory
that says what it is. Then --resume completes it with the same bytes, and computes only what the
journal does not vouch for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from faults.nursery import Ending, Nursery
from faults.world import World, tree

KINDS = ["out.safetensors", "out"]


def reference(nursery: Nursery, world: World, out: Path) -> tuple[dict[str, str], Ending]:
    """An uninterrupted run's files, and its steps."""
    ending = nursery.run(world.scenario(out, trace=True))
    assert "error" not in ending.result
    return tree(out), ending


def journaled(parent: Path) -> int:
    """Whole lines of windows in the journal that the killed run left."""
    found = list(parent.glob(".out*.avops-partial-*/avops-journal"))
    assert len(found) <= 1
    return max(0, found[0].read_bytes().count(b"\n") - 1) if found else 0


def crashes(trace: list[str]) -> list[tuple[int, str]]:
    halves = [(n, "half") for n, step in enumerate(trace) if step.split()[0] in ("write", "pwrite")]
    return [(n, "before") for n in range(len(trace))] + halves


@pytest.mark.parametrize("forced", [False, True], ids=["fresh", "forced"])
@pytest.mark.parametrize("name", KINDS)
def test_killed_at_every_step(
    nursery: Nursery, world: World, tmp_path: Path, name: str, forced: bool
) -> None:
    new, _ = reference(nursery, world, tmp_path / "new" / name)
    old: dict[str, str] = {}
    parent = tmp_path / "x"
    target = parent / name
    if forced:
        assert nursery.run(world.scenario(tmp_path / "old" / name, lams=(2,))).signal == 0
        old = tree(tmp_path / "old" / name)
    options = {"force": forced, "resume": True}

    def prepare() -> None:
        shutil.rmtree(parent, ignore_errors=True)
        if forced:
            shutil.copytree(tmp_path / "old", parent)

    prepare()
    whole = nursery.run(world.scenario(target, options=options, trace=True)).result
    for step, how in crashes(whole["trace"]):
        prepare()
        where = f"{how} step {step}: {whole['trace'][step]}"
        killed = nursery.run(world.scenario(target, options=options, crash=[step, how]))
        assert killed.signal == signal.SIGKILL, where
        found = tree(target) if target.exists() else {}
        companion = target.with_suffix(".avops_recipe.json").name
        pair = name == "out.safetensors"
        published = found == new
        if pair and not published:
            # The weights are renamed last, so only their recipe can be ahead of them.
            now = tree(target)
            assert now.get(name) == old.get(name), where
            assert now.get(companion) in (old.get(companion), new[companion]), where
        else:
            assert found in (old, new), where
        strangers = set(os.listdir(parent)) - {name, companion} if parent.exists() else set()
        assert all(s.startswith(f".{name}.avops-partial-") for s in strangers), where
        assert len(strangers) <= 1, where
        kept = journaled(parent)

        again = {"force": forced or published, "resume": True}
        resumed = nursery.run(world.scenario(target, options=again)).result
        assert "error" not in resumed, f"{where}: {resumed}"
        assert tree(target) == new, where
        assert set(os.listdir(parent)) == ({name, companion} if pair else {name}), where
        if not published:
            assert resumed["computed"] == whole["windows"] - kept, where
