"""Knobs by chance: after every step the model is what merge writes, or said to be unusable."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from avops.errors import AvopsError, CheckpointError
from avops.knobs import Knobs, device, host, knobs, lanes, loader, pieces
from knobs.random_world import RandomWorld, make
from knobs.simulated import Simulated

LAMS = (0, 1, -1, 0.5, "1/3", -1.25, 0.1, 2)
ERRORS = (KeyboardInterrupt, MemoryError, RuntimeError, CheckpointError)


class Driver:
    """Steps on one world, chosen by ``rng``; the truth is kept beside."""

    def __init__(self, made: RandomWorld, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.made, self.rng, self.patch = made, rng, patch
        self.lane: Simulated | None = None
        residency = rng.choice(["auto", "device", "pinned", "disk"])
        if residency != "auto":
            patch.setattr(pieces, "IMAGE", rng.choice([600, 4096, 1 << 20]))
            patch.setattr(loader, "CHUNK", rng.choice([100, 1500]))
            patch.setattr(device, "ARENA", 5000)
            self.lane = Simulated(rng.choice(["late", "copies first", "at once", 1, 2, 3]))
            patch.setattr(lanes, "lane_of", lambda _device: self.lane)
        self.knobs = Knobs(
            made.model, made.world.avs, base=made.world.base, residency=residency,
            **made.options,  # type: ignore[arg-type]
        )  # fmt: skip
        self.lams: dict[str, object] | None = {}

    def draw(self) -> dict[str, object]:
        names = [name for name in self.made.names if self.rng.random() < 0.7]
        return {name: self.rng.choice(LAMS) for name in names}

    def check(self) -> None:
        """Either whole and as said, or unusable and said."""
        if self.lams is None:
            for look in (lambda: self.knobs.state, self.made.model, self.at):
                with pytest.raises(AvopsError, match="weights are mixed"):
                    look()
            return
        wanted = {name: self.lams.get(name, 0) for name in self.made.names}
        said = self.knobs._whole().exact
        assert said == self.knobs._dials.exact(wanted)
        assert not self.made.differing(wanted), (wanted, self.made.options)

    def at(self) -> None:
        with self.knobs.at():
            pass

    def step(self, depth: int = 0) -> None:
        choice = self.rng.random()
        if choice < 0.45 or self.lams is None:
            lams = self.draw()
            self.knobs.set(lams)
            self.lams = lams
        elif choice < 0.7:
            self.fail()
        elif depth < 3:
            self.nested(depth)
        self.check()

    def nested(self, depth: int) -> None:
        """``at``, with steps inside, and perhaps an error of the block's own."""
        before, lams = self.lams, self.draw()
        raised = self.rng.random() < 0.4
        with contextlib.suppress(ZeroDivisionError), self.knobs.at(lams):
            self.lams = lams
            self.check()
            self.step(depth + 1)
            if raised:
                raise ZeroDivisionError
        self.lams = before

    def fail(self) -> None:
        """A ``set`` that is stopped anywhere, once or again on the way back."""
        kind, lasting = self.rng.choice(ERRORS), self.rng.random() < 0.3
        with injected(self, kind, self.rng.randint(1, 12), lasting) as hits:
            lams = self.draw()
            try:
                self.knobs.set(lams)
            except kind:
                assert hits
                if lasting and self.knobs._loaded is None:
                    self.lams = None
            else:
                assert not hits
                self.lams = lams


@contextlib.contextmanager
def injected(
    driver: Driver, kind: type[BaseException], after: int, lasting: bool
) -> Iterator[list[int]]:
    """The ``after``-th call of what works on weights raises ``kind``; lasting: all from there."""
    left, hits, lock = after, [], threading.Lock()

    def tick(*_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0 or (lasting and left < 0):
                hits.append(left)
                raise kind("injected")

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tick()
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        if driver.lane is None:
            patch.setattr(host, "combine", counted(host.combine))
        elif driver.rng.random() < 0.5:
            patch.setattr(driver.lane, "fails", tick)
        else:
            patch.setattr(loader.Loader, "_read", counted(loader.Loader._read))
        patch.setattr(knobs.Knobs, "_refuse_nonfinite", counted(knobs.Knobs._refuse_nonfinite))
        yield hits


def one(directory: Path, seed: int) -> None:
    """A world and some steps on it."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        driver = Driver(make(directory, seed), rng, patch)
        driver.check()
        for _ in range(6):
            driver.step()
        guard = [memory_around(p) for p in driver.made.model.parameters()]
        assert all(guard), "memory beside a parameter was written to"


def several_threads(directory: Path, seed: int) -> None:
    """Sets, ``at`` and looks under the lock from three threads, with failures now and then."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        driver = Driver(make(directory, seed), rng, patch)
        recipes: list[dict[str, object]] = [{}, *(driver.draw() for _ in range(4))]
        known = []
        for lams in recipes:
            known.append(driver.knobs._dials.exact({n: lams.get(n, 0) for n in driver.made.names}))
            driver.made.differing(lams)  # Has the merges made, one after the other.
        wrong: list[object] = []

        def fail() -> None:
            if rng.random() < 0.02:
                raise RuntimeError("injected")

        def look() -> None:
            with driver.knobs.lock:
                loaded = driver.knobs._loaded
                if loaded is not None:
                    wrong.extend(driver.made.differing(recipes[known.index(loaded.exact)]))

        def work(mine: random.Random) -> None:
            for _ in range(6):
                with contextlib.suppress(RuntimeError, AvopsError):
                    if mine.random() < 0.6:
                        driver.knobs.set(mine.choice(recipes))
                    else:
                        with driver.knobs.at(mine.choice(recipes)):
                            look()
                look()

        def guarded(mine: random.Random) -> None:
            try:
                work(mine)
            except BaseException as error:
                wrong.append(repr(error))
                raise

        combine, begin = host.combine, Simulated.begin
        patch.setattr(host, "combine", lambda *a, **k: (fail(), combine(*a, **k))[1])
        patch.setattr(Simulated, "begin", lambda lane: (fail(), begin(lane))[1])
        threads = [
            threading.Thread(target=guarded, args=(random.Random(seed + k),)) for k in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong


def memory_around(tensor: torch.Tensor) -> bool:
    """Whether what surrounds the tensor in its storage is as it was."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    start = tensor.storage_offset()
    return bool((whole[:start] == 7).all() and (whole[start + tensor.numel() :] == 7).all())


@pytest.mark.parametrize("block", range(5))
def test_random_steps(tmp_path: Path, block: int) -> None:
    for seed in range(5 * block, 5 * block + 5):
        directory = tmp_path / str(seed)
        directory.mkdir()
        one(directory, seed)


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_random_steps_of_several_threads(tmp_path: Path, seed: int) -> None:
    several_threads(tmp_path, seed)
