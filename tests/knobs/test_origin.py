"""The base that a model says it was loaded from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avops.errors import UserError
from avops.knobs import Knobs, origin
from avops.score import load_model
from avops.stream import merge, plan_merge
from knobs.toy import Toy, make
from small_project import SmallProject


def test_a_model_of_transformers_knows_its_directory(project: SmallProject) -> None:
    from safetensors.torch import load_file

    from avops.recipe import Recipe, Sources, parse_terms

    model = load_model("hf", dtype=torch.bfloat16)
    Knobs(model, {"fin": "aligned/fin.safetensors"}).set(fin=1)
    terms = parse_terms(["aligned/fin.safetensors:1"], Sources({}, lambda _: True))
    merge(plan_merge(Recipe("hf", terms), Path("out")))
    for name, tensor in load_file("out/model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_model_that_does_not_say(tmp_path: Path) -> None:
    world = make(tmp_path)
    with pytest.raises(UserError, match=r"the Toy does not say what .*; give base= with"):
        Knobs(world.model(), world.avs)


@pytest.mark.parametrize("place", ["config", "model"])
def test_where_it_says_so(tmp_path: Path, place: str) -> None:
    world = make(tmp_path)
    model = world.model()
    named = SimpleNamespace(_name_or_path=str(world.base)) if place == "config" else None
    object.__setattr__(model, "config", named)
    object.__setattr__(model, "name_or_path", str(world.base))
    assert origin.find_base(model).path == world.base


def test_a_place_without_weights(tmp_path: Path) -> None:
    model = Toy()
    for text in (str(tmp_path), str(tmp_path / "gone")):
        object.__setattr__(model, "config", SimpleNamespace(_name_or_path=text))
        with pytest.raises(
            UserError, match=r"says it was loaded from .*, which cannot be the base"
        ):
            Knobs(model, {})


def test_the_very_snapshot_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(tmp_path)
    asked: list[tuple[str, bool]] = []

    def resolve(text: str, *, allow_download: bool) -> Path:
        asked.append((text, allow_download))
        return world.base

    monkeypatch.setattr(origin, "resolve", resolve)
    model = world.model()
    commit = "0123456789" * 4
    config = SimpleNamespace(_name_or_path="owner/model", _commit_hash=commit)
    object.__setattr__(model, "config", config)
    assert origin.find_base(model).path == world.base
    config._commit_hash = None
    origin.find_base(model)
    assert asked == [(f"owner/model@{commit}", False), ("owner/model", False)]
