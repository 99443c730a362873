"""The identity of a study: what decides its measurements, and nothing else.

Two runs of one identity measure the same scores at the same point, so that they may share them.
Range, bound, wanted combinations, least shares, strategy and seed are free: they choose points and
judge them. Paths are shown, and do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avops.errors import DataError


@dataclass(frozen=True)
class Identity:
    """parts: by name, what counts. shown: where a part was found, as the user knows it."""

    parts: Mapping[str, str]
    shown: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def sha256(self) -> str:
        """The hash of all parts."""
        text = json.dumps(sorted(self.parts.items()), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def differences(self, new: Identity) -> list[str]:
        """What is another in ``new``, a line for each part: old → new."""
        names = dict.fromkeys((*self.parts, *new.parts))
        return [
            f"{name}: {self._text(name)} → {new._text(name)}"
            for name in names
            if self.parts.get(name) != new.parts.get(name)
        ]

    def to_json(self) -> str:
        """As one line of JSON."""
        data = {"parts": dict(self.parts), "shown": dict(self.shown)}
        return json.dumps(data, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Identity:
        """The identity of ``text``. Raises DataError naming ``where`` for anything else."""
        try:
            data: Any = json.loads(text)
            return cls(_texts(data["parts"]), _texts(data["shown"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: no identity of a study ({type(error).__name__}: {error}); "
                "give a run directory that `avops search` wrote"
            ) from error

    def _text(self, name: str) -> str:
        value = self.parts.get(name)
        if value is None:
            return "none"
        value = f"{value[:12]}…" if len(value) == 64 else value
        return f"{value} ({self.shown[name]})" if name in self.shown else value


def _texts(data: Any) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        raise TypeError("not names with texts")
    return data
