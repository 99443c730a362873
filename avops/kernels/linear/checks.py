"""What goes into products of a layer, checked once for all backends, and the memory they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from avops.kernels.logprob.checks import check_bias, check_matrix

if TYPE_CHECKING:
    import torch

    Projection: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
    """Weight [outputs, dim] and bias [outputs] or None."""
else:
    Projection = tuple


class Workspace:
    """Memory that calls of one thread share, one after the other; it grows, and stays."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return 0 if self._memory is None else self._memory.numel()

    def address(self, nbytes: int) -> int:
        """Where ``nbytes`` bytes begin, at a multiple of 64."""
        import torch

        if self._memory is None or self._memory.numel() < nbytes + 64:
            self._memory = None  # before more is taken
            self._memory = torch.empty(nbytes + 64, dtype=torch.uint8, device="cpu")
        return (self._memory.data_ptr() + 63) // 64 * 64


def check_rows(x: torch.Tensor) -> None:
    """Refuse an input that is not rows of f32 or bf16."""
    import torch

    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x is {x.dtype}, expected float32 or bfloat16")
    check_matrix(x, "x")


def check_projection(
    weight: torch.Tensor, bias: torch.Tensor | None, dim: int, x: torch.Tensor, what: str
) -> None:
    """Refuse weights that do not go with rows of ``dim`` elements like x's."""
    if weight.dtype != x.dtype:
        raise TypeError(f"{what}: weight is {weight.dtype} and x {x.dtype}, expected one dtype")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.data_ptr() % tensor.element_size():
            raise ValueError(f"{what}: {name} is not aligned to its elements; pass {name}.clone()")
    check_matrix(weight, f"{what}: weight", dim)
    if weight.device != x.device:
        raise ValueError(f"{what}: weight is on {weight.device} and x on {x.device}")
    check_bias(bias, weight)
