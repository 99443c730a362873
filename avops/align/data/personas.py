"""Personas: from files in PersonaHub's layout, or made by an endpoint, round after round.

    {"persona": "A night-shift nurse who cares for her father and counts every euro."}

The tree begins with a list of roots; every round asks for relatives of each persona of the round
before. A persona is known by its text: case and spacing do not make another one of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avops.errors import DataError
from avops.score.lines import Where, decode, parse_object, text_of


@dataclass(frozen=True)
class Persona:
    """One persona.

    origin: the file it is from, or ``created``. round: 0 for roots and those from files. parent:
    the id of the persona it was made from.
    """

    text: str
    origin: str
    round: int = 0
    parent: str | None = None

    @property
    def id(self) -> str:
        """Ten hexadecimal digits of its text: the same in every run."""
        return hashlib.sha256(normal(self.text).encode()).hexdigest()[:10]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, readable as PersonaHub's layout again."""
        return {
            "persona": self.text,
            "id": self.id,
            "origin": self.origin,
            "round": self.round,
            "parent": self.parent,
        }


@dataclass(frozen=True)
class Source:
    """What a persona file holds. ignored: fields that are not read."""

    personas: tuple[Persona, ...]
    ignored: tuple[str, ...]


def normal(text: str) -> str:
    """What two equal texts have in common: case and spacing do not count."""
    return " ".join(text.split()).casefold()


def distinct(personas: Iterable[Persona], known: Iterable[Persona] = ()) -> list[Persona]:
    """The first of every text, in order, without those that are ``known``."""
    seen = {normal(persona.text) for persona in known}
    kept = []
    for persona in personas:
        if normal(persona.text) not in seen:
            seen.add(normal(persona.text))
            kept.append(persona)
    return kept


def load_personas(path: Path) -> Source:
    """The personas in a JSON-lines file of objects with the field ``persona``.

    Raises DataError with file, line and field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the persona file cannot be read: {error.strerror}; give a JSON-lines file "
            'with {"persona": …} on each line, such as PersonaHub\'s persona.jsonl'
        ) from None
    personas = []
    ignored: dict[str, None] = {}
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = Where(str(path), number)
        line = decode(raw, where)
        if not line.strip():
            continue
        record = parse_object(line, where)
        personas.append(Persona(text_of(record, "persona", where).strip(), path.name))
        ignored |= dict.fromkeys(name for name in record if name != "persona")
    if not personas:
        raise DataError(f'{path}: no personas in the file, expected {{"persona": …}} on each line')
    return Source(tuple(personas), tuple(ignored))


def sample(personas: Sequence[Persona], count: int, seed: int) -> list[Persona]:
    """``count`` of the personas, drawn with ``seed``, in their order.

    Each has a number from its own text: one more persona in the file moves no other.
    """
    tickets = [ticket(seed, "sample", persona) for persona in personas]
    chosen = set(sorted(tickets)[:count])
    return [p for p, drawn in zip(personas, tickets, strict=True) if drawn in chosen]


def ticket(seed: int, purpose: str, persona: Persona) -> str:
    """The persona's place in an order drawn with ``seed`` for one purpose."""
    text = f"avops synth {seed} {purpose} {normal(persona.text)}"
    return hashlib.sha256(text.encode()).hexdigest()
