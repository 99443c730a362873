"""Failures on the device's path, on a device that is simulated: back to what was there, or said."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from avops.errors import AvopsError, CheckpointError, NonFiniteError
from avops.knobs import Knobs, loader
from knobs.simulated import Simulated, use
from knobs.toy import LAMS, World, differing

RESIDENCIES = ("device", "pinned", "disk")
pytestmark = pytest.mark.usefixtures("small_images")


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_a_value_that_is_not_finite_brings_back_what_was_there(
    world: World, monkeypatch: pytest.MonkeyPatch, residency: str
) -> None:
    use(monkeypatch, Simulated(3))
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    knobs.set(LAMS)
    with pytest.raises(NonFiniteError, match=r"would hold \d+ values .* at λ = low:3e\+38"):
        knobs.set(low=3e38)
    assert knobs.state["fin"] == -1.25
    assert not differing(model, world.merged(LAMS))


@pytest.mark.parametrize(
    ("residency", "place"),
    [("device", 1), ("device", 2), *((r, p) for r in ("pinned", "disk") for p in (1, 2, 3, 9))],
)
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_anywhere_brings_back_what_was_there(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    residency: str,
    kind: type[BaseException],
    place: int,
) -> None:
    lane = use(monkeypatch, Simulated(4))
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency=residency)
    knobs.set(fin=1)
    left = place

    def fail(_what: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise kind("injected")

    lane.fails = fail
    with pytest.raises(kind, match="injected"):
        knobs.set(LAMS)
    assert left < 0
    assert knobs.state["fin"] == 1
    assert not differing(model, world.merged({"fin": 1}))
    knobs.set(LAMS)
    assert not differing(model, world.merged(LAMS))


def test_two_failures_leave_the_model_unusable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = use(monkeypatch, Simulated(4))
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency="pinned")

    def fail(what: str) -> None:
        if what == "copy":
            raise RuntimeError("lost the device")

    lane.fails = fail
    with pytest.raises(RuntimeError, match="lost the device"):
        knobs.set(LAMS)
    for use_it in (
        lambda: knobs.state,
        lambda: knobs.counts,
        lambda: knobs.effective,
        lambda: knobs.at(med=1).__enter__(),
        lambda: model(torch.arange(3)),
    ):
        with pytest.raises(AvopsError, match=r"weights are mixed.*call set\(\) again"):
            use_it()
    lane.fails = lambda _: None
    knobs.set(LAMS)
    model(torch.arange(3))
    assert not differing(model, world.merged(LAMS))


def test_an_error_of_the_disk_brings_back_what_was_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Simulated(6))
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency="disk")
    knobs.set(fin=1)
    read, left = loader.Loader._read, [9]

    def fail(*args: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise AvopsError("f: reading at byte 7 failed: Input/output error")
        read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loader.Loader, "_read", fail)
    with pytest.raises(AvopsError, match="Input/output error"):
        knobs.set(LAMS)
    assert not differing(model, world.merged({"fin": 1}))


def test_readers_are_waited_for_before_going_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a ``set`` that failed must not write to the images of the next one."""
    lane = use(monkeypatch, Simulated("copies first"))
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency="disk")
    knobs.set(fin=1)
    read, left = loader.Loader._read, []
    inside: set[int] = set()
    failed = threading.Event()

    def late(*args: object) -> None:
        inside.add(threading.get_ident())
        failed.wait(0.02)
        time.sleep(0.02)
        read(*args)  # type: ignore[arg-type]
        inside.discard(threading.get_ident())

    def fail(what: str) -> None:
        if what == "copy" and not failed.is_set():
            failed.set()
            raise RuntimeError("injected")
        if what == "begin" and failed.is_set():
            left.append(len(inside))

    monkeypatch.setattr(loader.Loader, "_read", late)
    lane.fails = fail
    with pytest.raises(RuntimeError, match="injected"):
        knobs.set(LAMS)
    assert left == [0]
    assert not differing(model, world.merged({"fin": 1}))


def test_files_that_change_are_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Simulated())
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, residency="disk")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = knobs._sites[0].start
    touch_again = lambda rows: (start(rows), touch(world.base))  # noqa: E731
    monkeypatch.setattr(knobs._sites[0], "start", touch_again)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        knobs.set(fin=1)
    with pytest.raises(AvopsError, match="weights are mixed"):
        knobs.state  # noqa: B018
    # One that changed before is noticed before anything is written.
    knobs = Knobs(model, {"fin": world.avs["fin"]}, base=world.base, residency="disk")
    touch(world.avs["fin"])
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        knobs.set(fin=1)
    assert knobs.state == {"fin": 0}
    assert not differing(model, before)


def touch(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1]]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
