"""Where a live model's weights came from, so that ``base=`` may be left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avops.disk import Checkpoint, open_base
from avops.disk.hub import is_hub_id, resolve
from avops.errors import CheckpointError, UserError

if TYPE_CHECKING:
    import torch


def find_base(model: torch.nn.Module) -> Checkpoint:
    """The checkpoint that ``model`` says it was loaded from; nothing is downloaded.

    Raises UserError, asking for ``base=``, where the model does not say or the place has no
    safetensors.
    """
    text = _named(model)
    if not text:
        raise UserError(
            f"the {type(model).__name__} does not say what it was loaded from (it has no "
            "config._name_or_path); give base= with the checkpoint's path"
        )
    try:
        return open_base(_located(text, model))
    except CheckpointError as error:
        raise UserError(
            f"the {type(model).__name__} says it was loaded from {text!r}, which cannot be the "
            f"base: {error}; give base= with the checkpoint's path"
        ) from error


def _named(model: torch.nn.Module) -> str:
    config = getattr(model, "config", None)
    for text in (getattr(config, "_name_or_path", None), getattr(model, "name_or_path", None)):
        if isinstance(text, str) and text:
            return text
    return ""


def _located(text: str, model: torch.nn.Module) -> Path:
    """The directory: a local path, or the very snapshot in the hub's cache."""
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    if not Path(text).exists() and is_hub_id(text) and "@" not in text and commit:
        text = f"{text}@{commit}"
    return resolve(text, allow_download=False)
