"""The models of a mergekit config: references, members of a slice, slices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from avops.errors import RecipeError
from avops.recipe.mergekit.settings import Settings, shown


@dataclass(frozen=True)
class ModelRef:
    """A model: a local path or hub id (``owner/name``, ``owner/name@revision``), maybe a LoRA.

    adapter: the path of the LoRA adapter that is merged into the model first.
    """

    path: str
    adapter: str | None = None

    @property
    def plain(self) -> ModelRef:
        """The model without its adapter."""
        return ModelRef(self.path)

    def __str__(self) -> str:
        return f"{self.path}+{self.adapter}" if self.adapter else self.path


@dataclass(frozen=True)
class Member:
    """A model in a slice, with its own parameters."""

    model: ModelRef
    parameters: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers from ``first`` up to ``stop``, which is None for all of the model."""

    members: tuple[Member, ...]
    parameters: Settings = field(default_factory=dict)
    first: int = 0
    stop: int | None = None

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The models in order."""
        return tuple(member.model for member in self.members)


def parse_model(value: Any, where: str) -> ModelRef:
    """A model from ``path``, ``path@revision``, ``path+adapter``, or a table of these parts.

    Raises RecipeError naming ``where`` for anything else.
    """
    if isinstance(value, str):
        model, plus, adapter = value.partition("+")
        if "+" in adapter or (plus and not adapter):
            raise RecipeError(f"{where} is {shown(value)}, expected PATH or PATH+ADAPTER")
        return ModelRef(_path(model, where), _path(adapter, where) if plus else None)
    if not isinstance(value, dict) or "model" not in value:
        raise RecipeError(f"{where} is {shown(value)}, expected the path of a model")
    unknown = sorted(map(str, set(value) - {"model", "lora", "override_architecture"}))
    if unknown or value.get("override_architecture") is not None:
        key = unknown[0] if unknown else "override_architecture"
        raise RecipeError(f"{where}: {key!r} is not supported, expected model and lora only")
    lora = value.get("lora")
    return ModelRef(
        _path(value["model"], f"{where}.model"),
        None if lora is None else _path(lora, f"{where}.lora"),
    )


def _path(value: Any, where: str) -> str:
    if isinstance(value, dict) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        if isinstance(path, str) and path and (revision is None or isinstance(revision, str)):
            return f"{path}@{revision}" if revision else path
    if not isinstance(value, str) or not value or "\0" in value:
        raise RecipeError(f"{where} is {shown(value)}, expected the path of a model")
    if value.count("@") > 1:
        raise RecipeError(f"{where} is {shown(value)}, expected PATH or PATH@REVISION")
    return value
