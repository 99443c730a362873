"""Pieces: they tile the tensors, images hold them apart, and dither knows where they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import save_by_hand
from avops.kernels.rounding import uniform
from avops.knobs import Knobs, pieces
from avops.knobs.pieces import ALIGN, Group, shifted_key
from avops.stream import MergeOptions
from knobs.simulated import Simulated, use
from knobs.toy import World, differing, make


@given(st.integers(0, 2**64 - 1), st.integers(0, 12), st.integers(0, 2**50))
def test_a_shifted_key_hashes_as_the_place_in_the_tensor(key: int, power: int, block: int) -> None:
    start, count = (block << power) % 2**61, 1 << power
    found = uniform(shifted_key(key, start), 0, count)
    assert found.tolist() == uniform(key, start, count).tolist()


def test_across_the_stretches_of_the_hash() -> None:
    for start in (0, 1 << 32, 5 << 32, (1 << 32) - 16):
        found = uniform(shifted_key(99, start), 0, 16)
        assert found.tolist() == uniform(99, start, 16).tolist()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The toy, with an adapter on a matrix whose rows have no power of two of elements."""
    made = make(tmp_path, shards=2)
    rng = np.random.default_rng(5)
    draw = {
        "layers.1.lora_A.weight": rng.standard_normal((2, 24)).astype(np.float32),
        "layers.1.lora_B.weight": rng.standard_normal((16, 2)).astype(np.float32),
    }
    made.avs["odd"] = save_by_hand(tmp_path / "odd", draw)
    return made


def groups_of(
    world: World, monkeypatch: pytest.MonkeyPatch, image: int, rounding: str
) -> tuple[Knobs, tuple[Group, ...], torch.nn.Module]:
    monkeypatch.setattr(pieces, "IMAGE", image)
    use(monkeypatch, Simulated(9))
    model = world.model()
    knobs = Knobs(model, world.avs, base=world.base, rounding=rounding, residency="disk")
    return knobs, knobs._sites[0]._groups, model  # type: ignore[attr-defined]


@pytest.mark.parametrize("rounding", ["nearest", "dither"])
@pytest.mark.parametrize("image", [1, 600, 1500, 4096, 1 << 26])
def test_pieces_tile_the_tensors_and_give_the_bits_of_merge(
    world: World, monkeypatch: pytest.MonkeyPatch, image: int, rounding: str
) -> None:
    knobs, groups, model = groups_of(world, monkeypatch, image, rounding)
    assert (len(groups) == 1) == (image == 1 << 26)
    ends = [0] * len(knobs._targets)
    for group in groups:
        for piece in group.pieces:
            assert piece.start == ends[piece.target]
            assert piece.count > 0
            ends[piece.target] += piece.count
            name = knobs._targets[piece.target].name
            if name == "layers.1.weight":
                assert piece.start % 24 == 0 == piece.count % 24
    assert ends == [target.base.count for target in knobs._targets]
    lams = {"med": 0.5, "fin": -1, "low": 0.3, "odd": 0.7}
    knobs.set(lams)
    assert not differing(model, world.merged(lams, options=MergeOptions(rounding=rounding)))


@pytest.mark.parametrize("image", [600, 4096, 1 << 26])
def test_places_in_an_image_are_apart_and_aligned(
    world: World, monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    knobs, groups, _ = groups_of(world, monkeypatch, image, "nearest")
    for group in groups:
        reads = sorted((r for found in group.reads for r in found), key=lambda r: r.at)
        assert all(read.at % ALIGN == 0 for read in reads)
        for one, two in itertools.pairwise(reads):
            assert one.at + one.nbytes <= two.at
        assert reads[-1].at + reads[-1].nbytes <= group.nbytes
        assert group.nbytes <= max(image, 8192)
        assert group.spans[0][0] == 0
        assert [span[1] for span in group.spans[:-1]] == [span[0] for span in group.spans[1:]]
        for (start, end), found in zip(group.spans, group.reads, strict=True):
            assert all(start <= read.at and read.at + read.nbytes <= end for read in found)
        places = {p for piece in group.pieces for p in piece.places if p is not None}
        assert places == {read.at for read in reads}
    assert len({read.file for g in groups for found in g.reads for read in found}) == 5
    assert knobs.names == ("med", "fin", "low", "odd")
