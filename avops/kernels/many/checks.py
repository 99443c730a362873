"""What a table's entries and coefficients must be like, checked once for all backends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import COMPUTABLE, DType
from avops.kernels.many.entries import Entry, LowRank, Values
from avops.kernels.operands import is_f32

if TYPE_CHECKING:
    import torch


def dtype_of(tensor: torch.Tensor) -> DType | None:
    """The computable dtype of ``tensor``, None if kernels do not compute on it."""
    name = str(tensor.dtype).rpartition(".")[2]
    return next((dtype for dtype in COMPUTABLE if dtype.torch == name), None)


def check_entries(entries: Sequence[Entry]) -> torch.device:
    """The one device of ``entries``; refuses what does not fit."""
    if not entries:
        raise ValueError("no entries, expected at least one")
    device, terms = entries[0].base.device, len(entries[0].parts)
    for number, entry in enumerate(entries):
        where = f"entry {number}"
        if len(entry.parts) != terms:
            raise ValueError(f"{where} has {len(entry.parts)} parts, expected {terms} as entry 0")
        if entry.key is not None and not 0 <= entry.key < 1 << 64:
            raise ValueError(f"{where}: key is {entry.key}, expected 64 bits")
        count = entry.base.numel()
        _check_tensor(entry.base, f"{where}: base", count, device)
        _check_tensor(entry.out, f"{where}: out", count, device)
        for index, part in enumerate(entry.parts):
            if part is not None:
                what = f"{where}: part {index}"
                _check_part(part, what, count, device)
    _check_apart(entries)
    return device


def check_lams(lams: Sequence[float] | np.ndarray, entries: int, terms: int) -> np.ndarray:
    """``lams`` as f32 [entries, terms]; refuses other shapes and what f32 does not hold."""
    wide = np.asarray(lams, np.float64)
    if wide.shape not in ((terms,), (entries, terms)):
        raise ValueError(
            f"lams has shape {wide.shape}, expected ({terms},) or ({entries}, {terms})"
        )
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    wrong = np.argwhere(~(np.isfinite(narrow) & (narrow == wide)))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"lams{list(place)} is {wide[place]}, expected a finite number that f32 holds "
            "exactly; round it once: numpy.float32(lam)"
        )
    return np.ascontiguousarray(np.broadcast_to(narrow, (entries, terms)))


def _check_part(part: object, what: str, count: int, device: torch.device) -> None:
    if isinstance(part, LowRank):
        _check_factors(part, what, count, device)
    elif isinstance(part, Values):
        _check_tensor(part.tensor, what, count, device)
    else:
        raise TypeError(f"{what} is a {type(part).__name__}, expected Values, LowRank or None")


def _check_tensor(tensor: torch.Tensor, what: str, count: int, device: torch.device) -> None:
    if dtype_of(tensor) is None:
        raise TypeError(f"{what} has dtype {tensor.dtype}, expected float32, float16 or bfloat16")
    if tensor.numel() != count or not tensor.is_contiguous() or tensor.device != device:
        raise ValueError(
            f"{what} is {list(tensor.shape)} on {tensor.device}, expected {count} contiguous "
            f"elements on {device}"
        )
    if tensor.data_ptr() % tensor.element_size():
        raise ValueError(
            f"{what} is at the address {tensor.data_ptr():#x}, expected a multiple of its "
            f"{tensor.element_size()} bytes an element; clone() it"
        )


def _check_factors(part: LowRank, what: str, count: int, device: torch.device) -> None:
    left, right = part.left, part.right
    for tensor, side in ((left, "left"), (right, "right")):
        _check_tensor(tensor, f"{what}, {side}", tensor.numel(), device)
        if str(tensor.dtype) != "torch.float32" or tensor.dim() != 2:
            raise TypeError(
                f"{what}, {side} is {tensor.dtype} {list(tensor.shape)}, expected a float32 matrix"
            )
    rank = left.shape[1]
    if rank < 1 or right.shape[0] != rank or left.shape[0] * right.shape[1] != count:
        raise ValueError(
            f"{what} is {list(left.shape)} @ {list(right.shape)}, expected one rank ≥ 1 and "
            f"{count} elements"
        )
    if not is_f32(part.scale):
        raise ValueError(f"{what} has scale {part.scale!r}, expected a number that f32 holds")


def _check_apart(entries: Sequence[Entry]) -> None:
    """Outs overlap nothing but their own base, exactly. By sorted ranges: models are large."""
    outs = sorted(
        (*_range(entry.out), number) for number, entry in enumerate(entries) if entry.out.numel()
    )
    for (_, end, one), (start, _, two) in itertools.pairwise(outs):
        if start < end:
            raise ValueError(f"the outs of entries {one} and {two} overlap")
    starts = np.array([start for start, _, _ in outs], np.uint64)
    for number, entry in enumerate(entries):
        for tensor, is_base in _inputs(entry):
            start, end = _range(tensor)
            at = int(np.searchsorted(starts, end, "left")) - 1
            if start == end or at < 0 or outs[at][1] <= start:
                continue
            other = outs[at][2]
            same = is_base and other == number and _range(entry.out) == (start, end)
            if not (same and entry.out.dtype == entry.base.dtype):
                raise ValueError(f"the out of entry {other} overlaps an input of entry {number}")


def _inputs(entry: Entry) -> list[tuple[torch.Tensor, bool]]:
    found = [(entry.base, True)]
    for part in entry.parts:
        if isinstance(part, LowRank):
            found += [(part.left, False), (part.right, False)]
        elif part is not None:
            found.append((part.tensor, False))
    return found


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.element_size()
