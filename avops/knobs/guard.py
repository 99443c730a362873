"""A model whose weights are mixed must not be run: calling it raises until they are whole again."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from avops.errors import AvopsError

if TYPE_CHECKING:
    import torch

MIXED = (
    "the model's weights are mixed, since the last Knobs.set() failed halfway and so did going "
    "back; call set() again before using the model"
)

_HANDLES: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()


def forbid(model: torch.nn.Module) -> None:
    """Let calls of ``model`` raise AvopsError. What was compiled or captured before is not seen."""
    if model not in _HANDLES:
        _HANDLES[model] = model.register_forward_pre_hook(_refuse)


def permit(model: torch.nn.Module) -> None:
    """Let ``model`` be called again."""
    handle = _HANDLES.pop(model, None)
    if handle is not None:
        handle.remove()


def _refuse(_module: object, _args: object) -> None:
    raise AvopsError(MIXED)
