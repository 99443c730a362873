"""SIGKILL before every single step that changes the disk, and halfway through every write.

After each: the target is untouched or complete, and nothing else is left but a staging directory
that says what it is. Then --resume completes it with the same bytes, and computes only what the
journal does not vouch for. Interrupts at the same steps leave nothing at all.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faults.nursery import Ending, Nursery
from faults.world import World, companion, journaled, tree

PAIR, DIRECTORY = "out.safetensors", "out"


@dataclass(frozen=True)
class Stage:
    """A merge into ``target``, over an earlier output when forced: hashes before and after."""

    nursery: Nursery
    world: World
    target: Path
    old: dict[str, str]
    new: dict[str, str]
    forced: bool

    def prepare(self) -> None:
        """The state before the merge."""
        shutil.rmtree(self.target.parent, ignore_errors=True)
        if self.forced:
            shutil.copytree(self.target.parent.with_name("old"), self.target.parent)

    def run(self, *, resume: bool, **more: Any) -> Ending:
        options = {"force": self.forced, "resume": resume}
        return self.nursery.run(self.world.scenario(self.target, options=options, **more))

    def published(self, where: str) -> bool:
        """Whether the output is the new one; asserts that it is whole or untouched."""
        found = tree(self.target)
        if self.target.name == PAIR and found != self.new:
            # The weights are renamed last, so only their recipe can be ahead of them.
            recipe = companion(self.target)
            assert found.get(PAIR) == self.old.get(PAIR), where
            assert found.get(recipe.name) in (self.old.get(recipe.name), self.new[recipe.name])
        else:
            assert found in (self.old, self.new), where
        return found == self.new

    def left(self) -> list[str]:
        """Names of what is beside the output."""
        own = {self.target.name, companion(self.target).name}
        parent = self.target.parent
        return sorted(set(os.listdir(parent)) - own) if parent.exists() else []


@pytest.fixture(
    params=[(n, f) for n in (PAIR, DIRECTORY) for f in (False, True)],
    ids=["file", "file forced", "directory", "directory forced"],
)
def stage(request: pytest.FixtureRequest, nursery: Nursery, world: World, tmp_path: Path) -> Stage:
    name, forced = request.param
    assert "error" not in nursery.run(world.scenario(tmp_path / "new" / name)).result
    assert "error" not in nursery.run(world.scenario(tmp_path / "old" / name, lams=(2,))).result
    old = tree(tmp_path / "old" / name) if forced else {}
    new = tree(tmp_path / "new" / name)
    return Stage(nursery, world, tmp_path / "x" / name, old, new, forced)


def distinct(trace: list[str]) -> list[int]:
    """All steps; of a row of the same (flush, flush, flush) the first and the last."""
    verbs = ["", *(step.split()[0] for step in trace), ""]
    return [n for n in range(len(trace)) if not verbs[n] == verbs[n + 1] == verbs[n + 2]]


def test_killed_at_every_step(stage: Stage) -> None:
    stage.prepare()
    whole = stage.run(resume=True, trace=True).result
    trace = whole["trace"]
    writes = [n for n, step in enumerate(trace) if step.split()[0] in ("write", "pwrite")]
    assert len(writes) > 2 * whole["windows"]
    # Half of the first line, of a window, of its line, and of the recipe.
    halves = [(n, "half") for n in (*writes[:3], writes[-1])]
    for step, how in [(n, "before") for n in distinct(trace)] + halves:
        where = f"{how} step {step}: {trace[step]}"
        stage.prepare()
        assert stage.run(resume=True, crash=[step, how]).signal == signal.SIGKILL, where
        published = stage.published(where)
        left = stage.left()
        assert len(left) <= 1, where
        assert all(name.startswith(f".{stage.target.name}.avops-partial-") for name in left), where
        kept = journaled(stage.target)

        resumed = stage.run(resume=True).result
        assert "error" not in resumed, f"{where}: {resumed}"
        assert tree(stage.target) == stage.new, where
        assert stage.left() == [], where
        assert resumed["computed"] == (0 if published else whole["windows"] - kept), where


@pytest.mark.parametrize("resume", [False, True], ids=["", "resume"])
@pytest.mark.parametrize("how", ["interrupt", "interrupt after"])
def test_interrupted_at_every_step_of_the_main_thread(stage: Stage, how: str, resume: bool) -> None:
    stage.prepare()
    trace = stage.run(resume=resume, trace=True).result["trace"]
    flush = next(n for n, step in enumerate(trace) if step.startswith("fdatasync"))
    start = trace.index("reserve")
    published_at = len(trace)
    for step in [n for n in distinct(trace) if n < start or n >= flush]:
        where = f"{how} step {step}: {trace[step]}"
        stage.prepare()
        ending = stage.run(resume=resume, crash=[step, how])
        assert ending.error[0] == "KeyboardInterrupt", where
        if stage.published(where):
            published_at = min(step, published_at)
        elif stage.target.name == PAIR and not stage.forced:
            assert tree(stage.target) == {}, where
        # An interrupt of the removal itself leaves the rest of it, under its name.
        if step <= published_at:
            keeps = resume and published_at == len(trace)
            assert len(stage.left()) <= keeps, where
    assert published_at < len(trace)
