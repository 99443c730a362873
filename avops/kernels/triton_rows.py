# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""What the Triton kernels of a model's layers share: numbers from memory, and back.

f32 is passed as int32 and bf16 as int16 (``patterns`` in triton_patterns.py). EXACT: round to bf16
on the bits, since the interpreter's own conversion truncates; compiled, it is the processor's, to
nearest even.

Imported only where Triton computes, see logprob/triton_kernels.py.
"""

import triton
import triton.language as tl


@triton.jit
def fetch(pointers, mask):
    """The f32 numbers at ``pointers``, 0 where masked."""
    raw = tl.load(pointers, mask=mask, other=0)
    if pointers.dtype.element_ty == tl.int32:
        value = raw.to(tl.float32, bitcast=True)
    else:
        value = (raw.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit
def put(pointers, value, mask, EXACT: tl.constexpr):
    """Round ``value`` to what is at ``pointers``, and store it there."""
    if pointers.dtype.element_ty == tl.int32:
        tl.store(pointers, value.to(tl.int32, bitcast=True), mask=mask)
    elif EXACT:
        bits = value.to(tl.uint32, bitcast=True)
        raised = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        raised = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, raised)
        tl.store(pointers, raised.to(tl.uint16).to(tl.int16, bitcast=True), mask=mask)
    else:
        narrow = value.to(tl.bfloat16)
        tl.store(pointers, narrow.to(tl.int16, bitcast=True), mask=mask)
