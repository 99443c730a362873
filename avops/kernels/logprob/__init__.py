"""logprob: log P of one target for each row of logits, in one pass, in f32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.kernels import registry
from avops.kernels.logprob.checks import check_logits, check_out, check_targets, check_threads_for
from avops.kernels.operands import is_f32

if TYPE_CHECKING:
    import torch

__all__ = ["LogitRule", "logprob"]


@dataclass(frozen=True)
class LogitRule:
    """What a model does to the outputs of its head: x · multiply / divide, then the soft-cap.

    Each step is one rounding to f32, in that order; a factor of 1 is no step, and softcap=None is
    none: cap · tanh(x / cap). Raises ValueError for a factor that is not finite or is 0.
    """

    multiply: float = 1.0
    divide: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        for name in ("multiply", "divide", "softcap"):
            value = getattr(self, name)
            if name == "softcap" and value is None:
                continue
            if not is_f32(value) or value == 0 or (name == "softcap" and value < 0):
                kind = "positive" if name == "softcap" else "finite"
                raise ValueError(
                    f"{name} is {value!r}, expected a {kind} number, not 0, that f32 holds "
                    "exactly; round it once: float(numpy.float32(value))"
                )

    def numbers(self) -> tuple[float, float, float]:
        """(multiply, divide, softcap), softcap 0 for none."""
        return float(self.multiply), float(self.divide), float(self.softcap or 0)


def logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    rule: LogitRule | None = None,
    out: torch.Tensor | None = None,
    threads: int | None = None,
    backend: str | registry.Implementation | None = None,
) -> torch.Tensor:
    """out[row] = log P(targets[row]) = x_t − max − log Σ exp(x − max), x the row under ``rule``.

    Shapes and dtypes
        logits: f32 [rows, vocabulary], each row contiguous. targets: int64 [rows]. out: f32
        [rows]; a new tensor if None. One device. threads: on the CPU, torch's number if None.
    Numerics
        Never above 0. A row's bits depend on nothing but that row: not on other rows, threads, or
        (native) the processor. With u = 2⁻²⁴ and V columns,
            |out − exact| ≤ ½ ulp(out) + u·(c + ln V),
        where c counts roundings behind a term of the sum: 9 in native code (an exponential within
        1 ulp, 7 sums in f32, the rest in f64), 4 in the reference (f64, terms from f32 logits
        are exact), and what triton.py says. ln V bounds Σ p·(max − x), the argument's rounding.
        A soft-cap adds 3 ulp of each logit. Logits of −∞ are masked. A row with NaN or +∞, or
        with nothing but −∞, gives NaN; so does a target that is no column, on devices whose
        memory the host does not read.
    Aliasing
        out overlaps neither input; logits stay as they are.
    Errors
        TypeError, ValueError: what does not fit; on the CPU also a target that is no column.
        BackendError: a forced backend that cannot serve, or does not reach the device.
    Bytes moved
        logits once; nothing is allocated but out.
    Source
        Online normaliser (Milakov and Gimelshein, arXiv 1805.02867).
    """
    implementation = registry.resolve("logprob", backend, device=logits.device.type)
    check_logits(logits)
    rows, vocabulary = logits.shape
    check_targets(targets, rows, vocabulary, logits.device)
    result = check_out(out, rows, logits.device, (logits, targets))
    if rows:
        implementation.run(logits, targets, rule or LogitRule(), result, check_threads_for(threads))
    return result
