"""A half-precision file as a float32 model, a few weights at a time.

transformers converts weights out of a mapped file, whose pages stay resident until the last one is
done: the file beside all that was made of it. Loaded in the file's own dtype, weights are the
mapping itself. Here each is copied into float32, which is exact, and its pages are given up.

That is done only where it is seen to give the model that transformers would: all parameters are
bytes of the file, as they lie there, and what else the model computed for itself (rotary
frequencies) is what its modules compute in float32. Everything else is loaded in float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from avops.errors import MissingExtraError
from avops.score.mapped_files import copy_out, mapped_files

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "loading a model") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

THREADS = 4
"""Weights that are copied at a time, as transformers does: new memory is what takes time."""

NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_to_widen(config: Any, wanted: dict[str, Any]) -> torch.dtype | None:
    """The dtype that a config gives its weights, if they are wanted in float32 on the CPU."""
    if wanted["dtype"] != torch.float32 or "device_map" in wanted:
        return None
    if torch.get_default_dtype() != torch.float32:  # in which modules compute what they keep
        return None
    return NARROW.get(str(getattr(config, "dtype", None)).removeprefix("torch."))


def widened(model: Any, stored: torch.dtype) -> bool:
    """Whether ``model``, loaded in ``stored``, is a float32 model now; else nothing is changed."""
    mapped = mapped_files()
    parameters = list(model.parameters())
    if not all(p.dtype == stored and _is_mapped(p, mapped) for p in parameters):
        return False
    if not all(_computes_the_same(module) for module in model.modules()):
        return False
    with ThreadPoolExecutor(THREADS) as pool:
        wide = pool.map(lambda p: copy_out(p.data, mapped, torch.float32), parameters)
        for parameter, data in zip(parameters, wide, strict=True):
            parameter.data = data
    for module in model.modules():
        if getattr(getattr(module, "config", None), "dtype", None) == stored:
            module.config.dtype = torch.float32
    return True


def _is_mapped(weight: torch.Tensor, mapped: Sequence[tuple[int, int]]) -> bool:
    first, last = weight.data_ptr(), weight.data_ptr() + weight.nbytes
    inside = any(begin <= first and last <= end for begin, end in mapped)
    return inside and weight.is_contiguous()


def _computes_the_same(module: Any) -> bool:
    """Whether a module's own buffers are those of one that is made anew, with float32 default."""
    own = {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    if not own:
        return True
    if next(module.parameters(), None) is not None:  # random numbers, and memory
        return False
    try:
        fresh = dict(type(module)(module.config).named_buffers(recurse=False))
    except Exception:  # it takes something else
        return False
    return all(
        name in fresh and buffer.dtype == fresh[name].dtype and torch.equal(buffer, fresh[name])
        for name, buffer in own.items()
    )
