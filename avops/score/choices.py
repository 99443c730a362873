"""Who computes what while a model is scored, by device and dtype, and why.

The registry says what an operation's backends are; a scorer may still leave its work to torch,
where that is faster or a dtype is not served. Scorer and ``avops doctor`` ask the same functions.
Each says why an operation is left to torch (or to transformers), or gives None where it is taken.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from avops import env
from avops.errors import MissingExtraError
from avops.kernels import registry
from avops.kernels.linear import native as products
from avops.kernels.tree_attention import MOST_SIZE
from avops.kernels.tree_attention import native as tree

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCTS = ("linear", "gated_mlp")
BETWEEN = ("rms_norm", "rope", "swiglu")

DTYPES = (torch.float32, torch.bfloat16)
"""What the operations of layers take."""

HEAD_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

HEAD_SIZE = 128
"""Of the attention in the report: the usual one."""


class Use(NamedTuple):
    """What a scorer takes for one operation on a device in a dtype; ``by``: a backend, or torch."""

    operation: str
    device: str
    dtype: str
    by: str
    reason: str


def report() -> list[Use]:
    """Every operation of scoring, on the CPU and on CUDA where there is one, in each dtype."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [
        _use(operation, device, dtype)
        for operation in (*PRODUCTS, *BETWEEN, "tree_attention", "head_logprob")
        for device in devices
        for dtype in HEAD_DTYPES
    ]


def no_products(device: str, dtype: torch.dtype) -> str | None:
    """Why matrix products are torch's: native ones must be faster, not only there."""
    if device != "cpu":
        return f"on {device} products are torch's"
    for name in PRODUCTS:
        if registry.resolve(name).backend != "native":
            return _not_native(name)
    if not products.serves(dtype):
        return _not_served(dtype)
    if not products.faster(dtype):
        return (
            "the processor is not AMD's, where native products were measured to be ahead: elsewhere"
            " torch takes code of the processor's maker, and for bf16 its tiles (AMX)"
        )
    return None


def no_fusing(device: str, dtype: torch.dtype) -> str | None:
    """Why what is between the products of a layer is transformers' own."""
    if dtype not in DTYPES:
        return f"layers are fused in f32 and bf16, not in {_short(dtype)}"
    for name in BETWEEN:
        if registry.resolve(name, device=device).backend == "reference":
            return _no_backend(name, device)
    return None


def no_tree_attention(device: str, dtype: torch.dtype, size: int) -> str | None:
    """Why attention is torch's, with heads of ``size``."""
    if device != "cpu":
        return f"on {device} attention is torch's"
    if registry.resolve("tree_attention").backend != "native":
        return _not_native("tree_attention")
    if not tree.serves(dtype, size):
        if size > MOST_SIZE:
            return f"heads have {size} elements, and it takes at most {MOST_SIZE}"
        return _not_served(dtype)
    if _amx(dtype):
        return "the processor multiplies bf16 in tiles (AMX), which torch uses"
    return None


def no_head(device: str, dtype: torch.dtype) -> str | None:
    """Why the head's products and their log-softmax are torch's."""
    if dtype not in HEAD_DTYPES:
        return f"it takes no {_short(dtype)}"
    chosen = registry.resolve("head_logprob", device=device)
    # The reference is as slow as it is plain: only who asks for it gets it.
    if chosen.backend == "reference" and env.backend() is None:
        return _no_backend("head_logprob", device)
    return None


def _use(operation: str, device: str, dtype: torch.dtype) -> Use:
    why, otherwise = _asked(operation)
    reason = why(device, dtype)
    by = otherwise
    if reason is None:
        by = registry.resolve(operation, device=device).backend
        reason = _taken(operation, by)
    return Use(operation, device, _short(dtype), by, reason)


def _asked(operation: str) -> tuple[Callable[[str, torch.dtype], str | None], str]:
    """Why an operation is not taken, and who does its work then."""
    if operation in PRODUCTS:
        return no_products, "torch"
    if operation in BETWEEN:
        return no_fusing, "transformers"
    if operation == "head_logprob":
        return no_head, "torch"
    return lambda device, dtype: no_tree_attention(device, dtype, HEAD_SIZE), "torch"


def _taken(operation: str, backend: str) -> str:
    """What the registry says of the backend that is taken."""
    given = (row for row in registry.report() if row.operation == operation)
    reason = next(row.reason for row in given if row.backend == backend)
    known = operation in (*BETWEEN, "gated_mlp")
    return f"{reason}; in Llama's, Mistral's and Qwen's layers" if known else reason


def _not_native(operation: str) -> str:
    native = next(row for row in registry.report() if row.operation == operation)
    if native.available:
        return f"AVOPS_BACKEND={env.backend()} asks for no native code"
    return native.reason


def _no_backend(operation: str, device: str) -> str:
    if env.backend() is not None:
        return f"AVOPS_BACKEND={env.backend()} asks for it"
    reasons = [
        f"{row.backend}: {row.reason}"
        for row in registry.report()
        if row.operation == operation and not row.available
    ]
    return "; ".join(reasons) or f"no backend but the reference reaches {device}"


def _not_served(dtype: torch.dtype) -> str:
    if dtype in DTYPES:
        return f"the processor has no AVX-512 instructions for {_short(dtype)}"
    return f"native code takes f32 and bf16, not {_short(dtype)}"


def _short(dtype: torch.dtype) -> str:
    names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    return names.get(dtype, str(dtype).removeprefix("torch."))


@cache
def _amx(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies ``dtype`` in tiles (AMX), which torch uses."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()  # noqa: SLF001
