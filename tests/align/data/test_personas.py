"""Personas: files, equality, sampling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avops.align.data import Persona, load_personas, sample
from avops.align.data.personas import distinct
from avops.errors import DataError


def test_personahubs_layout(tmp_path: Path) -> None:
    path = tmp_path / "persona.jsonl"
    path.write_text('{"persona": "A baker."}\n\n{"persona": " A λ smith. ", "domain": "x"}\n')
    source = load_personas(path)
    assert [persona.text for persona in source.personas] == ["A baker.", "A λ smith."]
    assert source.ignored == ("domain",)
    assert source.personas[0].origin == "persona.jsonl"


def test_what_was_made_can_be_read_again(tmp_path: Path) -> None:
    made = [Persona("One.", "created", 1, "abc"), Persona("Two.", "created")]
    path = tmp_path / "personas.jsonl"
    path.write_text("".join(json.dumps(persona.to_dict()) + "\n" for persona in made))
    again = load_personas(path).personas
    assert [persona.id for persona in again] == [persona.id for persona in made]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no personas in the file"),
        ('{"persona": ""}', "line 1, field 'persona': got an empty text"),
        ('{"name": "x"}', "line 1, field 'persona': got nothing"),
        ('{"persona": "x"}\n[]', "line 2: got a list, expected a JSON object"),
        ('{"persona": "x"}\nnonsense', "line 2: got text that is not JSON"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        load_personas(path)
    assert message in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: No such file .* PersonaHub"):
        load_personas(tmp_path / "none.jsonl")


def test_case_and_spacing_make_no_other_persona() -> None:
    texts = ["A  baker.", "a baker.", "A smith.", "A BAKER.\n"]
    people = [Persona(text, "f") for text in texts]
    assert [persona.text for persona in distinct(people)] == ["A  baker.", "A smith."]
    assert distinct(people, [people[1]]) == [people[2]]
    assert people[0].id == people[1].id != people[2].id
    assert len(people[0].id) == 10


def test_a_sample_is_drawn_with_the_seed() -> None:
    people = [Persona(f"person {i}", "f") for i in range(100)]
    drawn = sample(people, 10, seed=1)
    assert len(drawn) == 10
    assert drawn == sorted(drawn, key=people.index)
    assert sample(people, 10, seed=2) != drawn
    assert set(drawn) <= set(sample(people, 20, seed=1))
    # A persona more in the file takes the place of one at most.
    more = sample([Persona("another", "f"), *people], 10, seed=1)
    assert len(set(more) & set(drawn)) >= 9
