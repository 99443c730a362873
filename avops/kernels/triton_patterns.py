"""Tensors for the Triton kernels of a model's layers (triton_rows.py), and where these compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def patterns(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of f32 or bf16 as the integers of its bits."""
    import torch

    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


@contextlib.contextmanager
def computing(tensor: torch.Tensor) -> Iterator[bool]:
    """Where kernels for ``tensor`` may be launched. Whether they are interpreted, on the CPU."""
    import torch

    if tensor.device.type == "cuda":
        with torch.cuda.device(tensor.device):
            yield False
    else:
        with np.errstate(all="ignore"):
            yield True
