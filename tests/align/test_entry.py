"""Vectors entered in avops.toml: nothing else in the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from avops.align import check_name, register
from avops.errors import RecipeError
from avops.recipe import parse_project

pytest.importorskip("tomlkit", reason="tomlkit is not installed")

COMMENTED = """\
# my project
base   = 'base.safetensors'   # the base

levels = [ "exp",
           "gen" ]  # two

[av]   # vectors
med = "avs/med.safetensors"
fin = { path = "aligned/fin", kind = "aligned" }   # keep
"""


def test_a_new_entry_leaves_every_other_byte(tmp_path: Path) -> None:
    file = tmp_path / "avops.toml"
    file.write_text(COMMENTED)
    assert register(file, "leg", "aligned/leg")
    assert file.read_text() == COMMENTED + 'leg = "aligned/leg"\n'


def test_an_entry_that_stands_there_already(tmp_path: Path) -> None:
    file = tmp_path / "avops.toml"
    file.write_text(COMMENTED)
    assert not register(file, "fin", "./aligned/fin")
    assert file.read_text() == COMMENTED


def test_a_name_of_another_path_needs_force(tmp_path: Path) -> None:
    file = tmp_path / "avops.toml"
    file.write_text(COMMENTED)
    with pytest.raises(
        RecipeError, match=r"av\.med is 'avs/med.safetensors'.*'aligned/med'.*--name.*--force"
    ):
        register(file, "med", "aligned/med")
    assert file.read_text() == COMMENTED
    assert register(file, "med", "aligned/med", force=True)
    changed = COMMENTED.replace('"avs/med.safetensors"', '"aligned/med"')
    assert file.read_text() == changed


def test_a_project_is_made_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "avops.toml"
    assert register(file, "med", "aligned/med", base="base.safetensors")
    found = parse_project(file.read_text(), file="avops.toml")
    assert found.base == "base.safetensors"
    assert found.avs["med"].path == "aligned/med"


@pytest.mark.parametrize(
    "text",
    [
        '[av]\nmed = "a"\n',
        'av = { med = "a" }\n',
        'av.med = "a"\n',
        "# nothing\n",
        'data = "d.jsonl"',
        '[av.med]\npath = "a"\n',
    ],
)
def test_every_way_to_write_a_table(tmp_path: Path, text: str) -> None:
    file = tmp_path / "avops.toml"
    file.write_text(text)
    assert register(file, "leg", "aligned/leg", base="b.safetensors")
    found = parse_project(file.read_text(), file="avops.toml")
    assert found.avs["leg"].path == "aligned/leg"
    assert found.base == "b.safetensors"
    assert ("med" in found.avs) == ("med" in text)


def test_what_is_refused_before_training(tmp_path: Path) -> None:
    file = tmp_path / "avops.toml"
    file.write_text(COMMENTED)
    check_name(file, "leg", "aligned/leg")
    with pytest.raises(RecipeError, match=r"av\.med is"):
        check_name(file, "med", "aligned/med")
    check_name(file, "med", "aligned/med", force=True)
    with pytest.raises(RecipeError, match=r"AV name 'a b', expected letters"):
        check_name(file, "a b", "x")
    file.write_text("base = ")
    with pytest.raises(RecipeError, match=r"not valid TOML"):
        check_name(file, "leg", "aligned/leg")
    assert file.read_text() == "base = "
