"""The name that was meant: found among many, in little time."""

from __future__ import annotations

import difflib
from typing import Any

import pytest

from avops.disk import nearest

MODEL = [
    f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"
    for layer in range(40)
    for expert in range(40)
    for kind in ("gate", "up", "down")
]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (
            "model.layers.7.mlp.experts.13.gate_prj.weight",
            "model.layers.7.mlp.experts.13.gate_proj.weight",
        ),
        (
            "model.layers.39.mlp.experts.39.up_projs.weight",
            "model.layers.39.mlp.experts.39.up_proj.weight",
        ),
        ("model.norm.wieght", "model.norm.weight"),
        ("nothing like it", None),
    ],
)
def test_names_of_a_large_model(name: str, meant: str | None) -> None:
    assert nearest(name, [*MODEL, "model.norm.weight"]) == meant


def test_numbers_that_no_name_has() -> None:
    found = nearest("model.layers.99.mlp.experts.13.gate_proj.weight", MODEL)
    assert found is not None
    assert found.endswith(".gate_proj.weight")


def test_the_slow_comparison_sees_few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def count(word: str, names: Any, **more: Any) -> list[str]:
        seen.append(len(list(names)))
        return real(word, names, **more)

    real = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", count)
    letters = [
        f"{chr(97 + i // 676)}{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}w" for i in range(9999)
    ]
    for names in (MODEL, letters):
        assert nearest(names[0] + "x", names) == names[0]
    assert max(seen) <= 1000
