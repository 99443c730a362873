"""An output that is an input, by whatever name, and outputs and inputs inside each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from avops.errors import OutputError
from avops.recipe import Recipe, Source, Term
from avops.stream import MergeOptions, MergePlan, merge, plan_merge
from faults.world import World, tree

FORCE = MergeOptions(force=True)


def plan(base: Path, av: Path, out: Path) -> MergePlan:
    return plan_merge(Recipe(str(base), (Term(Source("av", str(av)), 0.5, ".5"),)), out, FORCE)


def refuse(base: Path, av: Path, out: Path) -> str:
    """The message of the refusal; asserts that nothing in the models' directory has changed."""
    before = tree(base.parent)
    with pytest.raises(OutputError) as error:
        merge(plan(base, av, out))
    assert tree(base.parent) == before
    return str(error.value)


@pytest.mark.parametrize("model", ["base", "one"])
@pytest.mark.parametrize("how", ["path", "dots", "symlink", "hard link", "link in the way"])
def test_a_file_over_an_input(own_world: World, tmp_path: Path, model: str, how: str) -> None:
    directory = own_world.directory
    source = directory / f"{model}.safetensors"
    out = {
        "path": source,
        "dots": directory / "base/.." / source.name,
        "symlink": tmp_path / "soft.safetensors",
        "hard link": tmp_path / "hard.safetensors",
        "link in the way": tmp_path / "models2" / source.name,
    }[how]
    if how == "symlink":
        out.symlink_to(source)
    elif how == "hard link":
        out.hardlink_to(source)
    elif how == "link in the way":
        (tmp_path / "models2").symlink_to(directory)
    message = refuse(directory / "base.safetensors", directory / "one.safetensors", out)
    assert f"is or holds the input {source}" in message
    assert "never overwritten; choose another -o" in message


@pytest.mark.parametrize("how", ["path", "symlink", "parent", "other names of its shards"])
def test_a_directory_over_an_input(own_world: World, tmp_path: Path, how: str) -> None:
    directory = own_world.directory
    base, out = directory / "base", tmp_path / "link"
    if how == "path":
        out = base
    elif how == "symlink":
        out.symlink_to(base)
    elif how == "parent":
        out = directory
    else:
        # As a hub snapshot: links to shards that lie elsewhere.
        out.mkdir()
        for shard in (directory / "one").iterdir():
            (out / shard.name).symlink_to(shard)
        assert "is or holds the input" in refuse(base, out, out)
        return
    assert "is or holds the input" in refuse(base, directory / "one", out)


def test_an_input_inside_the_output(own_world: World, tmp_path: Path) -> None:
    """Of an earlier output: --force would remove what is read."""
    directory, out = own_world.directory, tmp_path / "out"
    merge(plan(directory / "base", directory / "one", out))
    before = tree(out)
    shard = out / "model-00001-of-00002.safetensors"
    assert f"holds the input {out}" in refuse(out, directory / "one", out)
    assert f"holds the input {out}" in refuse(directory / "base", out, out)
    link = tmp_path / "link"
    link.symlink_to(out)
    assert "is or holds the input" in refuse(link, directory / "one", out)
    # The base is one file of the output, under another name.
    only = tmp_path / "only"
    only.mkdir()
    (only / "model.safetensors").hardlink_to(shard)
    one = directory / "one" / shard.name
    merge(plan(only, one, tmp_path / "again"))
    assert tree(out) == before


def test_an_input_file_inside_the_output(own_world: World, tmp_path: Path) -> None:
    directory, out = own_world.directory, tmp_path / "out"
    merge(plan(directory / "base", directory / "one", out))
    (directory / "one.safetensors").rename(out / "one.safetensors")
    before = tree(out)
    with pytest.raises(OutputError, match=r"holds the input .*one.safetensors"):
        plan(directory / "base", out / "one.safetensors", out)
    assert tree(out) == before


def test_an_output_inside_an_input(own_world: World) -> None:
    """It is a new directory there; the input's files stay as they are."""
    base = own_world.directory / "base"
    before = tree(base)
    out = base / "merged"
    first = tree(merge(plan(base, own_world.directory / "one", out)).target)
    assert {name: value for name, value in tree(base).items() if "/" not in name} == before
    # And again over it, with what it wrote beside the shards that are read.
    assert tree(merge(plan(base, own_world.directory / "one", out)).target) == first
    assert sorted(os.listdir(base)) == sorted([*before, "merged"])


def test_a_file_inside_an_input(own_world: World) -> None:
    base = own_world.directory / "base"
    before = tree(base)
    merge(plan(base, own_world.directory / "one", base / "merged.safetensors"))
    after = tree(base)
    assert after.keys() - before == {"merged.safetensors", "merged.avops_recipe.json"}
    assert {name: after[name] for name in before} == before


def test_what_the_user_adds_to_the_output_meanwhile(own_world: World, tmp_path: Path) -> None:
    """--force was checked when planning, and is checked again before anything is replaced."""
    directory, out = own_world.directory, tmp_path / "out"
    merge(plan(directory / "base", directory / "one", out))
    before = tree(out)
    again = plan(directory / "base", directory / "two", out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"'notes.txt' in it is not listed"):
        merge(again)
    assert {k: v for k, v in tree(out).items() if k != "notes.txt"} == before
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["models", "out"]
