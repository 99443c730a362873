"""The name that was probably meant, among the tens of thousands that a model may have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"\d+")
# Names that are compared letter by letter, a slow thing to do.
_MOST = 1000


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The one of ``names`` that is most like ``name``; None where none is.

    cutoff: as of difflib. Numbers count last: layers and experts have the same few names.
    """
    groups: dict[str, list[str]] = {}
    for other in names:
        members = groups.setdefault(_NUMBER.sub("0", other), [])
        # The names of one kind differ in numbers alone, and those of the wanted name go first.
        if len(members) < _MOST or _NUMBER.findall(other) == _NUMBER.findall(name):
            members.append(other)
    kinds = list(groups)[:_MOST]
    near = difflib.get_close_matches(_NUMBER.sub("0", name), kinds, n=1, cutoff=cutoff)
    if not near:
        return None
    numbers = _NUMBER.findall(name)
    same = [other for other in groups[near[0]] if _NUMBER.findall(other) == numbers]
    found = difflib.get_close_matches(name, same or groups[near[0]][:_MOST], n=1, cutoff=0.0)
    return found[0] if found else None
