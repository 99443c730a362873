"""Notices a model that holds other tensors by now than those that Knobs was made for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.errors import AvopsError
from avops.knobs.targets import Place, Target, named_places

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class _Held:
    """What was under a name: ``owner``'s ``key``, the tensor there, and where its values lay.

    owner: a module's parameters or buffers.
    """

    name: str
    owner: Mapping[str, torch.Tensor | None]
    key: str
    tensor: torch.Tensor
    mark: tuple[object, ...]

    def stays(self) -> bool:
        return self.owner.get(self.key) is self.tensor and _mark(self.tensor) == self.mark


class Watch:
    """The tensors of ``targets`` under the names that ``model`` has for them.

    Looked for by the modules that held them, and by their names only where modules changed: one
    that torch.compile wrapped still has them under their names, one that was replaced has not.
    """

    def __init__(self, model: torch.nn.Module, targets: Sequence[Target]) -> None:
        self._model = model
        named = named_places(model)
        names = [name for target in targets for name in target.names]
        self._held = [
            _Held(name, _owner(place), place.key, place.tensor, _mark(place.tensor))
            for name in names
            for place in named[name]
            if place.tensor is not None
        ]
        self._links = list(_links(model))

    def check(self) -> None:
        """Raise AvopsError when a tensor was moved, cast, reshaped or replaced."""
        if any(parent.get(key) is not child for parent, key, child in self._links):
            self._follow()
        for held in self._held:
            if not held.stays():
                raise _moved(held.name)

    def _follow(self) -> None:
        """Find the tensors by their names, in the modules of now."""
        named = named_places(self._model)
        before: dict[str, dict[int, tuple[object, ...]]] = {}
        for held in self._held:
            before.setdefault(held.name, {})[id(held.tensor)] = held.mark
        found = []
        for name, marks in before.items():
            places = named.get(name, [])
            for place in places:
                tensor = place.tensor
                if tensor is None or id(tensor) not in marks:
                    raise _moved(name)
                found.append(_Held(name, _owner(place), place.key, tensor, marks[id(tensor)]))
            if not places:
                raise _moved(name)
        self._held, self._links = found, list(_links(self._model))


def _owner(place: Place) -> Mapping[str, torch.Tensor | None]:
    # Looked into by every set(): getattr() of a module takes longer.
    module = place.module
    return module._parameters if place.parameter else module._buffers  # noqa: SLF001


def _mark(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _links(
    model: torch.nn.Module,
) -> Iterator[tuple[dict[str, torch.nn.Module | None], str, torch.nn.Module | None]]:
    """Every module's children: where they are held, by which key, and what is there."""
    for module in model.modules():
        for key, child in module._modules.items():  # noqa: SLF001
            yield module._modules, key, child  # noqa: SLF001


def _moved(name: str) -> AvopsError:
    return AvopsError(
        f"model parameter {name!r} is not where it was when Knobs was made (a model.to(), load, "
        "cast or another module moved or replaced it), so it was not changed; make a new Knobs"
    )
