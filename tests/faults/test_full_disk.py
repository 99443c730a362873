"""No space: refused before any work when it can be known, and clean when it comes midway."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faults.nursery import Ending, Nursery
from faults.world import World, companion, make_world, tree

NO_FALLOCATE = "fallocate:0:95"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models of 132 kB."""
    return make_world(tmp_path_factory.mktemp("large"), scale=50)


def assert_full(ending: Ending, advice: str = "free some space") -> None:
    kind, message, code = ending.error
    assert (kind, code) == ("WriteError", 1), ending
    assert "nothing was left behind" in message
    assert advice in message


@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_full_before_the_start(nursery: Nursery, large: World, small_disk: Path, name: str) -> None:
    (small_disk / "filler").write_bytes(bytes(200_000))
    kind, message, code = nursery.run(large.scenario(small_disk / name)).error
    assert (kind, code) == ("OutputError", 2)
    assert f"{small_disk / name}: needs 13" in message
    assert "free some space or choose another -o" in message
    assert os.listdir(small_disk) == ["filler"]


@pytest.mark.parametrize("reserved", [True, False], ids=["reserved", "not reserved"])
@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_full_midway(
    shimmed: Nursery, large: World, small_disk: Path, name: str, reserved: bool
) -> None:
    """Someone else fills the disk. Space for the weights is reserved, if the system can."""
    fill = [20, "fill", str(small_disk)]
    rules = "" if reserved else NO_FALLOCATE
    scenario = large.scenario(small_disk / name, block=4096, at_window=fill, faults=rules)
    ending = shimmed.run({**scenario, "options": {"resume": True}})
    assert ending.result["computed"] >= 20
    assert_full(ending)
    assert os.listdir(small_disk) == ["filler"]


@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_an_earlier_output_outlives_a_full_disk(
    nursery: Nursery, world: World, small_disk: Path, name: str
) -> None:
    out = small_disk / name
    assert not nursery.run(world.scenario(out)).error[0]
    old = tree(out)
    fill = [2, "fill", str(small_disk)]
    again = world.scenario(out, lams=(2,), options={"force": True}, at_window=fill)
    assert_full(nursery.run(again))
    assert tree(out) == old
    kept = {name, companion(out).name} if out.suffix else {name}
    assert set(os.listdir(small_disk)) == {"filler", *kept}


def test_only_the_second_output_fails(
    nursery: Nursery, large: World, small_disk: Path, tmp_path: Path
) -> None:
    """They are on different disks, and only the second is too small."""
    first, second = tmp_path / "x/1.safetensors", small_disk / "2.safetensors"
    (small_disk / "filler").write_bytes(bytes(200_000))
    ending = nursery.run(large.scenario(first, second, lams=(1, 2)))
    kind, message, _ = ending.error
    assert kind == "OutputError"
    assert message.startswith(f"{second}: needs 13")
    assert "free some space" in message
    assert os.listdir(small_disk) == ["filler"]
    assert not (tmp_path / "x").exists()


def test_only_the_second_output_fails_midway(
    nursery: Nursery, large: World, small_disk: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "x/1.safetensors", small_disk / "2.safetensors"
    fill = [5, "fill", str(small_disk)]
    ending = nursery.run(large.scenario(first, second, lams=(1, 2), block=4096, at_window=fill))
    assert_full(ending)
    assert ending.error[1].startswith(f"{second}: ")
    assert os.listdir(small_disk) == ["filler"]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("rules", ["", NO_FALLOCATE], ids=["reserved", "not reserved"])
@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_a_limit_of_file_sizes(
    shimmed: Nursery, large: World, tmp_path: Path, name: str, rules: str
) -> None:
    """RLIMIT_FSIZE, which needs no privileges. The journal and the first blocks still fit."""
    out = tmp_path / "x" / name
    ending = shimmed.run(large.scenario(out, block=4096, fsize=70_000, faults=rules))
    assert_full(ending, "limits file sizes")
    assert os.listdir(tmp_path) == []
