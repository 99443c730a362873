"""The self-check: one small block both ways, before a model is trusted to the packed path.

Trees of a few items, cut to one length, are scored packed, and whole through the model's own
attention. The two may differ by roundings alone, and how far these move a score is measured: the
exact way runs again with every rounding operation's result moved by as much as its roundings may,
with random signs. The mean square of what that does to a score S estimates

    σ² = Σ_y n_y Σ_j (∂S/∂y_j · u·a_j)²

over the outputs y of all operations: n_y roundings stand behind an element of y (the inner length
of its sum, and a few), each at most u·a_j, that sum over absolute values. By Hoeffding's
inequality, with roundings taken as independent, two evaluations differ by more than 2·T·σ with a
probability of at most 2·exp(−T²/2), 5e-11 for T = 7. A layout that loses or leaks context moves
scores by orders of magnitude more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from avops.errors import MissingExtraError, UserError
from avops.score.attention import UnsupportedAttentionError
from avops.score.blocks import build_block
from avops.score.heap import trim_heap
from avops.score.packed import why_not_layers
from avops.score.weight_norms import Norms, norm_of, norm_once

try:
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.score.blocks import Block
    from avops.score.head import Head
    from avops.score.packed import PackedPath
    from avops.score.plan import TokenPlan

ITEMS = 2
LEVELS = 2
PREFIX = 12
"""Tokens that the responses of an item of the sample have in common, at most."""

BRANCH = 8
"""Tokens of a response of the sample, at most."""

SAMPLES = 2
SIGNS = 1 << 18
T = 7.0
UNIT = 2.0**-24
ELEMENTWISE = 8.0

MOVES = frozenset(
    {"__getitem__", "cat", "clone", "contiguous", "embedding", "empty_like", "expand", "gather"}
    | {"index_select", "masked_fill", "new_empty", "ones_like", "repeat_interleave", "stack"}
    | {"where", "zeros_like"}
)
"""Functions that round nothing, though what they give is new."""


class Verdict(NamedTuple):
    """decided: False where scores are not finite. reason: why the packed path is not to be used.

    difference, bound: the largest difference found, and what it may be; nan where not compared.
    """

    decided: bool
    reason: str | None
    difference: float = math.nan
    bound: float = math.nan


class _Sample(NamedTuple):
    """The same sequences twice: as one block, and as rows of one length, scored from ``start``."""

    block: Block
    ids: NDArray[np.int64]
    start: int


@torch.inference_mode()
def self_check(path: PackedPath, plan: TokenPlan) -> Verdict:
    """Whether the packed path gives what the model gives for whole sequences."""
    head = path.head
    sample = draw(plan)
    ids = torch.from_numpy(sample.ids).to(head.model.get_input_embeddings().weight.device)
    if not head.learn(ids[:1, :1]):
        return Verdict(True, "what it does to logits after its head is not known")
    try:
        with path.session():
            values, windows = path.run(sample.block)
    except UnsupportedAttentionError as unsupported:
        return Verdict(True, str(unsupported))
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as failure:
        return Verdict(True, f"its forward fails over packed rows: {failure}")
    longest = int(plan.lengths.max()) - 1
    if reason := why_not_layers(head.model.config.get_text_config(), windows, longest):
        return Verdict(True, reason)
    pairs = torch.from_numpy(sample.block.pairs)
    got = values.cpu().double()[pairs].view(len(ids), -1).mean(1)
    want = exact_scores(head, ids, sample.start)
    bound = 2 * T * rounding_spread(head, ids, sample.start, want) + UNIT * float(want.abs().max())
    trim_heap()  # of what it took, which no run takes
    difference = float((got - want).abs().max())
    if not math.isfinite(difference) or not math.isfinite(bound):
        return Verdict(False, None)
    reason = None
    if difference > bound:
        reason = (
            f"packed and whole sequences differ by {difference:.1e} in a mean log-prob, where "
            f"roundings explain {bound:.1e}"
        )
    return Verdict(True, reason, difference, bound)


def draw(plan: TokenPlan) -> _Sample:
    """The start of a few items: those whose shortest response past the parting is longest."""
    prefixes, branches = [], []
    levels = range(min(LEVELS, len(plan.items.levels)))
    for item in range(len(plan.items)):
        prefixes.append(int(plan.shared[item]))
        branches.append(int(plan.lengths[item].min()) - prefixes[-1])
    chosen = sorted(range(len(branches)), key=lambda item: -branches[item])[:ITEMS]
    branch = max(1, min(BRANCH, *(branches[item] for item in chosen)))
    prefix = max(1, min(PREFIX, *(prefixes[item] for item in chosen)))
    groups = []
    for item in chosen:
        rows = [plan.sequence(item, level) for level in levels]
        cut = min(prefix, prefixes[item])
        middle = [row[prefixes[item] : prefixes[item] + prefix + branch - cut] for row in rows]
        groups.append(
            [np.concatenate([row[:cut], part]) for row, part in zip(rows, middle, strict=True)]
        )
    length = min(row.size for group in groups for row in group)
    groups = [[row[:length] for row in group] for group in groups]
    start = max(1, min(prefix, length - 1))
    block = build_block(groups, [[start] * len(group) for group in groups])
    ids = np.stack([row for group in groups for row in group]).astype(np.int64)
    return _Sample(block, ids, start)


def rounding_spread(head: Head, ids: torch.Tensor, start: int, want: torch.Tensor) -> float:
    """σ, the largest over the sequences ``ids``; want: their scores undisturbed."""
    disturbed = _Disturbed()
    squares, largest = torch.zeros_like(want), 0.0
    for _ in range(SAMPLES):
        with disturbed:
            hidden = _hidden(head, ids, start)
        squares += (_means(head, hidden, ids[:, start:]) - want).square()
        largest = max(largest, float(norm_of(hidden, -1).max()))
    body = float((squares / SAMPLES).sqrt().max())
    return math.hypot(body, _head_spread(head, hidden.shape[-1], largest))


def _head_spread(head: Head, width: int, hidden: float) -> float:
    """What the head adds: its sums, whose products are at most the norms', and the log-softmax.

    hidden: the largest norm of a row of its inputs.
    """
    largest = hidden * float(norm_of(head.module.weight, -1).max())
    if head.change is not None:
        largest *= max(1.0, abs(head.change.multiply / head.change.divide))
    return UNIT * math.sqrt(width + 2 + 9 * ELEMENTWISE) * largest


def exact_scores(head: Head, ids: torch.Tensor, start: int) -> torch.Tensor:
    """The mean log-prob of each of some sequences of one length, whole, f64."""
    return _means(head, _hidden(head, ids, start), ids[:, start:])


def _means(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # One target a row is a column of a table, and flat as it lies.
    log_probs = head.log_probs(hidden, targets.contiguous().flatten())
    return log_probs.view(targets.shape).double().mean(1).cpu()


def _hidden(head: Head, ids: torch.Tensor, start: int) -> torch.Tensor:
    count, fed = ids.shape[0], ids.shape[1] - 1
    rows = torch.arange(count * fed, device=ids.device).view(count, fed)[:, start - 1 :]
    return head.hidden(rows.flatten(), input_ids=ids[:, :-1].contiguous())


class _Disturbed(TorchFunctionMode):
    """Moves every result by what its roundings may come to, with random signs."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)
        self._drawn = torch.empty(SIGNS).bernoulli_(0.5, generator=self._generator)
        self._drawn.mul_(2).sub_(1)
        self._signs: dict[torch.device, torch.Tensor] = {}
        self._norms: Norms = {}

    def _sign(self, y: torch.Tensor) -> torch.Tensor:
        """Signs of the shape of ``y``: from a random place of many, again and again if need be."""
        first = int(torch.randint(SIGNS, (), generator=self._generator))
        if y.device not in self._signs:
            self._signs[y.device] = self._drawn.to(y.device)
        signs = self._signs[y.device]
        signs = signs.roll(-first) if y.numel() > SIGNS - first else signs[first:]
        return signs.repeat(-(-y.numel() // signs.numel()))[: y.numel()].view(y.shape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
        if not isinstance(y, torch.Tensor) or not _rounds(func, y, tensors):
            return y
        if func is functional.scaled_dot_product_attention:
            x, key, value = args[:3]
            sizes = func(x, key, value.abs(), *args[3:], **(kwargs or {}))
            tensors = [x, key, value, sizes]
        moved = _spread(func, y, tensors, self._norms) * self._sign(y)
        return y + moved.nan_to_num_(0.0, 0.0, 0.0).to(y.dtype)


def _rounds(func: Any, y: torch.Tensor, tensors: list[torch.Tensor]) -> bool:
    if not tensors or not y.is_floating_point() or y.dtype == torch.float64 or not y.numel():
        return False
    name = getattr(func, "__name__", "")
    if name in MOVES or (name == "to" and y.dtype == tensors[0].dtype):  # to another device
        return False
    own = y.untyped_storage().data_ptr()
    if any(own == tensor.untyped_storage().data_ptr() for tensor in tensors):
        return False
    return not bool((y == y.round()).all())  # counts and positions are exact


def _spread(func: Any, y: torch.Tensor, tensors: list[torch.Tensor], norms: Norms) -> torch.Tensor:
    """The standard deviation of an element's rounding error, f32."""
    n, a = _sums(func, y, tensors, norms)
    spread = math.sqrt(n) * UNIT * a
    own = torch.finfo(y.dtype).eps / 2
    if own > UNIT:  # one rounding to half precision at the end, and of attention's weights
        size = a if func is functional.scaled_dot_product_attention else y.float().abs()
        spread = torch.hypot(spread, own * size)
    return spread


def _sums(
    func: Any, y: torch.Tensor, tensors: list[torch.Tensor], norms: Norms
) -> tuple[float, torch.Tensor]:
    """Of one result, n and a; with weights, the product of the norms stands for the sum."""
    x = tensors[0].float()
    size = y.float().abs()
    name = getattr(func, "__name__", "")
    if func is functional.linear:
        return x.shape[-1] + 2, norm_of(x, -1) * norm_once(tensors[1], -1, norms).squeeze(-1)
    if name in ("matmul", "__matmul__", "bmm") and tensors[1].ndim > 1:
        return x.shape[-1] + 2, x.abs() @ tensors[1].float().abs()
    if name in ("addmm", "baddbmm"):
        a = norm_of(tensors[1], -1) * norm_once(tensors[2], -2, norms)
        return tensors[1].shape[-1] + 2, x.abs() + a
    if func is functional.scaled_dot_product_attention:
        key, sizes = tensors[1].float(), tensors[3].float()
        score = float(norm_of(x, -1).max() * norm_of(key, -1).max()) * x.shape[-1] ** -0.5
        # exp moves by a score's error; the weighted sum and its divisor have a term per key.
        n = 4 * (x.shape[-1] + 2) * min(score, 30.0) ** 2 + 2 * key.shape[-2] + ELEMENTWISE
        return n, sizes
    if name in ("layer_norm", "rms_norm", "native_layer_norm"):
        # Centring may cancel what is left of x: its size in units of the spread counts too.
        centred = x.std(-1, keepdim=True, unbiased=False).clamp_min(1e-30)
        weight = tensors[1].float().abs() if len(tensors) > 1 else 1.0
        return x.shape[-1] + ELEMENTWISE, size + x.abs() / centred * weight
    if name == "log_softmax":
        a = size + x.abs() + x.abs().amax(-1, keepdim=True)
        return 1, (y.shape[-1] + ELEMENTWISE * a.square()).sqrt()
    if name == "softmax":
        return y.shape[-1] + ELEMENTWISE, size
    n = ELEMENTWISE + (x.shape[-1] if y.numel() < x.numel() else 0)
    if len(tensors) == 1 and x.shape == y.shape:  # an activation may cancel, as 1 + tanh does
        return n, size + x.abs()
    return n, size
