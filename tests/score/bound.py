"""How far two f32 evaluations of one mean log-prob may lie apart.

A torch function that rounds gives y + δ. Behind y_j stand n roundings, each at most u·a_j with
u = 2⁻²⁴: for a sum of n products in any order a_j is the same sum over absolute values (Higham,
Accuracy and Stability, §3.1), for an elementwise function n = 8 and a_j = |y_j|. To first order
each moves the mean log-prob S by |∂S/∂y_j|·u·a_j at most, and automatic differentiation gives
∂S/∂y. Roundings are taken to be independent with mean 0 (Higham and Mary, SIAM J. Sci. Comput.
41 (2019) A2815), so Hoeffding's inequality holds: their sum exceeds

    T·u·√(Σ_y n_y Σ_j (∂S/∂y_j · a_j)²)

with probability at most 2·exp(−T²/2), 5e-11 for T = 7. Two evaluations lie at most twice that
apart. The worst case, without independence, is about 10⁴ times larger and would show nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from avops.score import TokenPlan

UNIT = 2.0**-24
ELEMENTWISE = 8.0
T = 7.0


class _Record(TorchFunctionMode):
    """Keeps y, n and a of every function that rounds."""

    def __init__(self) -> None:
        self.charges: list[tuple[torch.Tensor, float, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        rounds = isinstance(y, torch.Tensor) and y.requires_grad and tensors and not y._is_view()
        if rounds:  # a view moves, and so does torch.cat, whose first argument is a list
            with torch.no_grad():
                n, a = _roundings(func, y, tensors, kwargs or {})
            y.retain_grad()
            self.charges.append((y, n, a))
        return y


def _roundings(
    func: Any, y: torch.Tensor, tensors: list[torch.Tensor], kwargs: dict[str, Any]
) -> tuple[float, torch.Tensor]:
    """n and a for one call."""
    x = tensors[0]
    if func is functional.linear:
        shift = tensors[2].abs() if len(tensors) > 2 else 0.0
        return x.shape[-1] + 2, functional.linear(x.abs(), tensors[1].abs()) + shift
    if func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
        return x.shape[-1] + 2, x.abs() @ tensors[1].abs()
    if func is torch.addmm:
        return tensors[1].shape[-1] + 2, x.abs() + tensors[1].abs() @ tensors[2].abs()
    if func is functional.scaled_dot_product_attention:
        q, k, v = tensors[:3]
        scores = q.abs() @ k.abs().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)
        score = float(scores.max()) * kwargs["scale"]
        # exp moves by a score's error; the weighted sum and its divisor have a term per key.
        n = 4 * (q.shape[-1] + 2) * score**2 + 2 * k.shape[2] + ELEMENTWISE
        return n, func(q, k, v.abs(), **kwargs)
    if func is functional.layer_norm:
        spread = (x.var(-1, unbiased=False, keepdim=True) + kwargs["eps"]).sqrt()
        size = (x.abs() + x.abs().mean(-1, keepdim=True)) / spread
        a = size * kwargs["weight"].abs() + kwargs["bias"].abs() + y.abs()
        return x.shape[-1] + ELEMENTWISE, a
    if func is torch.log_softmax:  # x − max − log Σ exp: each of the sum's roundings moves it by u
        size = y.abs() + x.abs() + x.abs().amax(-1, keepdim=True)
        return 1, (y.shape[-1] + ELEMENTWISE * size.square()).sqrt()
    if func in (functional.softmax, torch.softmax):
        return y.shape[-1] + ELEMENTWISE, y.abs()
    n = ELEMENTWISE + (x.shape[-1] if y.numel() < x.numel() else 0)
    if len(tensors) == 1 and x.shape == y.shape:  # an activation may cancel, as 1 + tanh does
        return n, y.abs() + x.abs()
    return n, y.abs()


def rounding_bound(model: Any, plan: TokenPlan) -> np.ndarray:
    """The bound for each item and level, with log-softmax over the model's own f32 logits."""
    bounds = np.empty(plan.starts.shape)
    for item, level in np.ndindex(bounds.shape):
        ids = torch.from_numpy(plan.sequence(item, level).astype(np.int64))
        start = int(plan.starts[item, level])
        with _Record() as record:
            logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
            log_probs = torch.log_softmax(logits, -1)
        log_probs[start - 1 :].gather(1, ids[start:, None]).mean().backward()
        squares = 0.0
        for y, n, a in record.charges:
            if y.grad is not None:
                moved = torch.where(y.grad == 0, 0.0, y.grad * a)  # masked scores: a is huge
                squares += n * float(moved.double().square().sum())
        bounds[item, level] = 2 * T * UNIT * math.sqrt(squares)
        model.zero_grad(set_to_none=True)
    return bounds
