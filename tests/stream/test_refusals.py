"""What merge and extract refuse or remark before they move a byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from avops.disk import RECIPE_NAME
from avops.disk.digest import file_digest
from avops.errors import BackendError, CheckpointError, MismatchError, OutputError, RecipeError
from avops.recipe import Recipe, Source, Term
from avops.stream import MergeOptions, extract, merge, plan_extract, plan_merge
from avops.stream.record import model_card, shown_path
from families import Family, Save


def term(path: Path, lam: float = 1.0) -> Term:
    return Term(Source(path.stem, str(path)), lam, str(lam))


def test_a_delta_is_no_base(family: Family, tmp_path: Path) -> None:
    av = tmp_path / "av.safetensors"
    extract(plan_extract(str(family.base), str(family.one), av))
    recipe = Recipe(str(av), (term(family.two),))
    with pytest.raises(CheckpointError, match="already an alignment vector, expected a checkpoint"):
        plan_merge(recipe, tmp_path / "out.safetensors")


def test_the_same_vector_by_two_paths(family: Family, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(family.one)
    recipe = Recipe(str(family.base), (term(family.one), term(link)))
    with pytest.raises(RecipeError, match="--av link: the same file or directory as one"):
        plan_merge(recipe, tmp_path / "out.safetensors")


def test_nothing_to_extract(save: Save, tmp_path: Path) -> None:
    ints = save("ints.safetensors", {"i": np.arange(3)})
    with pytest.raises(MismatchError, match="holds no floating tensor"):
        plan_extract(str(ints), str(ints), tmp_path / "out.safetensors")


def test_an_empty_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="not a valid index"):
        plan_merge(Recipe(str(tmp_path)), tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ["out.bin", "out.pt", "out.SAFETENSORS", "out.gguf"])
def test_names_of_other_kinds_of_file(family: Family, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"a directory would be made of that name"):
        plan_merge(Recipe(str(family.base), (term(family.one),)), tmp_path / name)
    with pytest.raises(OutputError, match=r"a directory would be made of that name"):
        plan_extract(str(family.base), str(family.one), tmp_path / name)


def test_a_forced_backend_is_checked_first(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "abacus")
    with pytest.raises(BackendError, match="AVOPS_BACKEND is 'abacus'") as error:
        plan_merge(Recipe(str(family.base), (term(family.one),)), tmp_path / "out.safetensors")
    assert error.value.exit_code == 2


def test_a_directory_without_a_config_is_said(family: Family, tmp_path: Path) -> None:
    plan = plan_merge(Recipe(str(family.base), (term(family.one),)), tmp_path / "out")
    assert "has no config.json: the output has none, either" in plan.notes[0]


def test_sidecars_left_out_are_said(sharded_family: Family, tmp_path: Path) -> None:
    (sharded_family.base / "additional_chat_templates").mkdir()
    plan = plan_merge(Recipe(str(sharded_family.base), (term(sharded_family.one),)), tmp_path / "o")
    assert "additional_chat_templates was not copied: a directory" in plan.notes


def test_leftovers_are_said(family: Family, tmp_path: Path) -> None:
    stale = tmp_path / ".out.avops-partial-1-ab"
    stale.mkdir()
    plan = plan_merge(Recipe(str(family.base), (term(family.one),)), tmp_path / "out")
    assert any(f"a run that was killed left {stale}" in note for note in plan.notes)


def test_the_directory_lists_its_files(family: Family, tmp_path: Path) -> None:
    recipe, out = Recipe(str(family.base), (term(family.one),)), tmp_path / "out"
    merge(plan_merge(recipe, out))
    listed = json.loads((out / RECIPE_NAME).read_text())["files"]
    assert [*listed, RECIPE_NAME] == sorted([*os.listdir(out)], key=lambda n: (n == RECIPE_NAME, n))
    for name, facts in listed.items():
        assert facts == {"bytes": (out / name).stat().st_size, "xxh3": file_digest(out / name)}
    merge(plan_merge(recipe, out, MergeOptions(force=True)))
    (out / "eval.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"'eval.txt' in it is not listed"):
        plan_merge(recipe, out, MergeOptions(force=True))


def test_the_loser_of_a_race_does_not_touch_the_winners_recipe(
    family: Family, tmp_path: Path
) -> None:
    out = tmp_path / "o/out.safetensors"
    plans = [plan_merge(Recipe(str(family.base), (term(family.one, x),)), out) for x in (0.5, 0.25)]
    merge(plans[0])
    with pytest.raises(OutputError, match="already exists"):
        merge(plans[1])
    record = json.loads((tmp_path / "o/out.avops_recipe.json").read_text())
    assert record["terms"][0]["lam"] == "0.5"
    assert sorted(os.listdir(tmp_path / "o")) == ["out.avops_recipe.json", "out.safetensors"]


def test_published_paths() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = f"/cache/hub/models--mistralai--Mistral-7B-v0.3/snapshots/{commit}"
    assert shown_path(hub) == f"mistralai/Mistral-7B-v0.3@{commit}"
    record = {"avops": "1", "base": {"path": shown_path(hub)}, "terms": []}
    assert b'base_model: "mistralai/Mistral-7B-v0.3"\n' in model_card(record)
    assert shown_path("/cache/hub/models--a--b") == "a/b"
    assert shown_path("/secret/base.safetensors") == "base.safetensors"
    assert shown_path("models/base") == "models/base"
    assert shown_path(".") == Path.cwd().name
    assert shown_path("../x/base") == "base"


def test_a_wrong_total_size_is_corrected_and_said(sharded_family: Family, tmp_path: Path) -> None:
    path = sharded_family.base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    right = index["metadata"]["total_size"]
    recipe = Recipe(str(sharded_family.base), (term(sharded_family.one),))
    assert plan_merge(recipe, tmp_path / "same").notes == ()
    path.write_text(json.dumps({**index, "metadata": {"total_size": 7}}))
    report = merge(plan_merge(recipe, tmp_path / "out"))
    assert "records a total_size of 7, its tensors have" in report.notes[0]
    written = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert written == {**index, "metadata": {"total_size": right}}
