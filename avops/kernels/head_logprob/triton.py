"""head_logprob in Triton: triton_kernels.py, product and softmax in one kernel.

Compiled for CUDA devices; with TRITON_INTERPRET=1 interpreted, on CPU tensors, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avops.kernels.logprob import LogitRule
from avops.kernels.logprob.triton import quiet, rounding_count, rule_options
from avops.kernels.many import triton as many
from avops.kernels.many.triton import available

if TYPE_CHECKING:
    import torch

__all__ = ["available", "run"]

# Vocabulary of a program: fixed, so that bits do not depend on the device.
SPLIT = 2048
# Rows of a launch, which bound the workspace; more rows take more launches.
PASS = 8192
# Rows of a program of the second kernel.
MERGED = 128


def __getattr__(name: str) -> Any:
    """DEVICES: what the kernels compute on; asked for late, since the answer needs Triton."""
    if name == "DEVICES":
        return many.DEVICES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Tile:
    """A program's sizes. depth: elements of k in a step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# bf16 and f16 on tensor cores; f32 without: its products are not to be cut to TF32.
HALF = Tile(rows=128, columns=128, depth=64, warps=8, stages=3)
FULL = Tile(rows=64, columns=64, depth=32, warps=4, stages=2)


def roundings(tile: Tile = FULL) -> float:
    """Roundings behind a term of a row's sum, as in ``logprob``."""
    return rounding_count(SPLIT // tile.columns, tile.columns)


def run(rule: LogitRule, threads: int) -> Head:  # noqa: ARG001 - for CPUs
    """A head, ready to run."""
    return Head(rule)


class Head:
    """A workspace for one head's vocabulary: for each split, rows' maxima and sums."""

    def __init__(self, rule: LogitRule) -> None:
        self._rule = rule
        self._room: torch.Tensor | None = None

    def run(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write out, on the current stream."""
        with quiet(hidden):
            for first in range(0, hidden.shape[0], PASS):
                part = slice(first, first + PASS)
                self._pass(hidden[part], weight, bias, targets[part], out[part])

    def _pass(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        from avops.kernels.head_logprob import triton_kernels

        (rows, dim), vocabulary = hidden.shape, weight.shape[0]
        splits = -(-vocabulary // SPLIT)
        maxima, totals, picked = self._workspace(hidden.device, splits)
        widen = hidden.dtype != weight.dtype or weight.element_size() == 4
        # The interpreter would multiply the patterns of bf16.
        widen = widen or hidden.device.type == "cpu"
        tile = FULL if widen else HALF
        triton_kernels.partial[(-(-rows // tile.rows), splits)](
            hidden,
            weight,
            weight if bias is None else bias,
            targets,
            maxima,
            totals,
            picked,
            rows,
            vocabulary,
            dim,
            *self._rule.numbers(),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            SPLIT=SPLIT,
            WIDEN=widen,
            BIAS=bias is not None,
            **rule_options(self._rule),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )
        triton_kernels.merge[(-(-rows // MERGED),)](
            maxima, totals, picked, targets, out, rows, vocabulary, splits, ROWS=MERGED
        )

    def _workspace(
        self, device: torch.device, splits: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maxima, totals and target logits: of fixed size, whatever the number of rows."""
        import torch

        size = (2 * splits + 1) * PASS
        if self._room is None or self._room.numel() != size or self._room.device != device:
            # Memory made in inference mode could not be written outside of it.
            with torch.inference_mode(mode=False):
                self._room = torch.empty(size, dtype=torch.float32, device=device)
        maxima, totals = self._room[: 2 * splits * PASS].view(2, splits * PASS)
        return maxima, totals, self._room[2 * splits * PASS :]
