# mypy: ignore-errors
# ruff: noqa: N803 - constants are upper-case in Triton
"""logprob's Triton kernel, and what head_logprob's shares with it. Contract: logprob/__init__.py.

Imported only where Triton computes: `triton.jit` decides at import whether it compiles or, with
TRITON_INTERPRET=1, interprets. Not typed: the bodies are Triton's language, not Python's.

Exponentials are the device's (within 2⁻²² of the value), divisions to nearest. Launch with
enable_fp_fusion=False: a rule's products are rounded.
"""

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    """Within a few ulp: m / (m + 2) with m = e^(2|x|) - 1, cut as in csrc/exp.h."""
    twice = 2.0 * tl.abs(x)
    y = tl.where(twice > 20.0, 20.0, twice)
    n = tl.floor(y * 1.44269502162933349609375 + 0.5)
    r = (y - n * 0.693145751953125) - n * 1.428606765330187045037746429443359375e-06
    q = 0.0013814348494634032249450683593750 * r + 0.008368837647140026092529296875
    q = q * r + 0.0416684001684188842773437500
    q = q * r + 0.16666519641876220703125
    q = q * r + 0.4999999403953552246093750
    small = r + (r * r) * q
    # 2^n by its bits; a NaN passes through `small`.
    power = ((tl.where(n == n, n, 0.0).to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    m = power * small + (power - 1.0)
    size = tl.div_rn(m, m + 2.0)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def shape(x, multiply, divide, softcap, MULTIPLY: tl.constexpr, DIVIDE: tl.constexpr,
          SOFTCAP: tl.constexpr):  # fmt: skip
    """The rule; steps that are none are left out."""
    if MULTIPLY:
        x = x * multiply
    if DIVIDE:
        x = tl.div_rn(x, tl.zeros_like(x) + divide)
    if SOFTCAP:
        x = _tanh(tl.div_rn(x, tl.zeros_like(x) + softcap)) * softcap
    return x


@triton.jit
def fold(x, maximum, total, AXIS: tl.constexpr):
    """The running maximum and sum with the logits `x` in them, reduced along AXIS."""
    now = tl.maximum(maximum, tl.max(x, AXIS))
    # What exponents are taken relative to: 0 while there is nothing but -infinity.
    origin = tl.where(now == float("-inf"), 0.0, now)
    terms = tl.exp(x - tl.expand_dims(origin, AXIS)) if AXIS == 1 else tl.exp(x - origin)
    return now, total * tl.exp(maximum - origin) + tl.sum(terms, AXIS)


@triton.jit
def rows(
    logits,
    targets,
    out,
    vocabulary,
    stride,
    multiply,
    divide,
    softcap,
    SIZE: tl.constexpr,
    MULTIPLY: tl.constexpr,
    DIVIDE: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * stride
    target = tl.load(targets + row)
    maximum = float("-inf")
    total = 0.0
    for first in range(0, vocabulary, SIZE):
        columns = first + tl.arange(0, SIZE)
        x = tl.load(here + columns, mask=columns < vocabulary, other=float("-inf"))
        x = shape(x, multiply, divide, softcap, MULTIPLY, DIVIDE, SOFTCAP)
        # tanh has made a number of what is no column.
        x = tl.where(columns < vocabulary, x, float("-inf"))
        maximum, total = fold(x, maximum, total, 0)
    inside = (target >= 0) & (target < vocabulary)
    picked = tl.load(here + target, mask=inside, other=float("nan"))
    picked = shape(picked, multiply, divide, softcap, MULTIPLY, DIVIDE, SOFTCAP)
    tl.store(out + row, finish(picked, maximum, total.to(tl.float64)))


@triton.jit
def finish(picked, maximum, total):
    """The log P of a target from its logit and the row's maximum and sum (f64)."""
    below = picked.to(tl.float64) - maximum.to(tl.float64)
    return (below - tl.log(total)).to(tl.float32)
