"""torch's varlen attention, where it serves a token tree: on CUDA, in half precision.

It takes all nodes at once, each with the keys of its chain. Its arguments differ by version of
torch: they are read from its signature.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from avops.errors import MissingExtraError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from avops.score.attention import Layout


def varlen(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    numbers: tuple[int | None, float],
) -> torch.Tensor | None:
    """All nodes in one call of torch's varlen attention, where it serves: [1, rows, heads, size].

    It aligns queries with the last keys, as flash attention does since 2.1; the self-check of the
    packed path would see it if a version did not.
    """
    call = varlen_attention()
    if call is None or not _flash_takes(query, value):
        return None
    options = options_of(call.takes, query, key, numbers)
    if options is None:
        return None
    lengths = layout.lengths(query.device)
    keys, values = (
        rows[0].transpose(0, 1).index_select(0, lengths.gather) for rows in (key, value)
    )
    out: torch.Tensor = call.function(
        query[0].transpose(0, 1).contiguous(),
        keys,
        values,
        lengths.queries,
        lengths.keys,
        lengths.longest_query,
        lengths.longest_key,
        **options,
    )
    return out[None]


def _flash_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and size <= 256
        and size % 8 == 0
        and value.shape[-1] == size
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def options_of(
    takes: frozenset[str],
    query: torch.Tensor,
    key: torch.Tensor,
    numbers: tuple[int | None, float],
) -> dict[str, Any] | None:
    """What to ask of a version of varlen attention; None if it cannot be asked."""
    window, scaling = numbers
    options: dict[str, Any] = {}
    if "window_size" in takes:  # keys to the left of the query's own, which a window counts
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None and "is_causal" in takes:
        options["is_causal"] = True
    else:
        return None
    if "scale" in takes:
        options["scale"] = scaling
    elif scaling != query.shape[-1] ** -0.5:
        return None
    if "enable_gqa" in takes:  # before, heads are counted by the kernel alone
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    return options


class Varlen(NamedTuple):
    """torch's function, and the names of its arguments."""

    function: Callable[..., Any]
    takes: frozenset[str]


@cache
def varlen_attention() -> Varlen | None:
    """The varlen attention of torch; None in a version that has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    return Varlen(varlen_attn, frozenset(inspect.signature(varlen_attn).parameters))
