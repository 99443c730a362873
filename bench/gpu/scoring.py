"""Scoring a 7B on a device: avops beside padded and packed transformers loops and lm-eval.

Work: a Mistral-7B with random weights in bf16, 300 queries of 60 tokens, 3 responses of 240 to
each. The floor counts what a scorer must compute at least: 2 FLOP for each weight of a layer and
token of the tree (a query once, no response's last token), and for each weight of the head and
scored token; TFLOP/s of every way are by that count, and shares of what a large bf16 matrix product
reaches in the same run. Figures of ours are refused unless a sample of scores keeps to the f32
oracle within what roundings explain (avops/score/check.py); a peer's difference is shown.
"""

from __future__ import annotations

import copy
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avops.score import Item, Items, Scorer, TokenPlan, encode_ids, new_model, oracle_scores
from avops.score.check import UNIT, T, rounding_spread
from avops.score.head import Head
from bench.gpu.live import config
from bench.gpu.record import Kept, nothing
from bench.gpu.timing import forget, peak, timed, wait

LEVELS = ("exp", "gen", "avd")
Work = Callable[[TokenPlan], np.ndarray]
# Seconds of a run from which one has to do.
_LONG = 8.0


@dataclass(frozen=True)
class Shape:
    """The model and the work. checked: items of the sample. batches: our tokens in a pass."""

    hidden: int = 4096
    layers: int = 32
    vocabulary: int = 32000
    items: int = 300
    query: int = 60
    response: int = 240
    checked: int = 3
    batches: tuple[int, ...] = (16384, 8192, 4096)
    peers_batch: int = 8192


TINY = Shape(512, 1, 500, items=3, query=6, response=9, checked=2, batches=(64, 32), peers_batch=64)


def make_model(shape: Shape, device: torch.device) -> Any:
    sizes = config(shape.hidden, shape.layers) | {"vocab_size": shape.vocabulary}
    torch.manual_seed(0)
    with torch.device(device):
        model = new_model(sizes | {"sliding_window": None, "initializer_range": 0.02})
    return model.to(device, torch.bfloat16).eval()


def make_plan(shape: Shape) -> TokenPlan:
    rng = np.random.default_rng(0)
    ids = []
    for _ in range(shape.items):
        query = rng.integers(5, shape.vocabulary, shape.query)
        responses = rng.integers(5, shape.vocabulary, (len(LEVELS), shape.response))
        responses[:, 0] = 5 + np.arange(len(LEVELS))  # they part at once
        ids.append([np.r_[query, response].tolist() for response in responses])
    entries = tuple(Item("x", "q", dict.fromkeys(LEVELS, "r"), n + 1) for n in range(shape.items))
    starts = [[shape.query] * len(LEVELS)] * shape.items
    return encode_ids(Items("random", LEVELS, entries), ids, starts, score_eos=False)


def first_items(plan: TokenPlan, count: int) -> TokenPlan:
    items = Items(plan.items.source, LEVELS, plan.items.entries[:count])
    ids = [[plan.sequence(i, k).tolist() for k in range(len(LEVELS))] for i in range(count)]
    return encode_ids(items, ids, plan.starts[:count].tolist(), score_eos=False)


def floor_flop(model: Any, shape: Shape) -> tuple[int, float]:
    """(tokens, FLOP) that scoring takes at least."""
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.parameters() if p.ndim == 2) - 2 * head
    tokens = shape.items * (shape.query + len(LEVELS) * (shape.response - 1))
    scored = shape.items * len(LEVELS) * shape.response
    return tokens, 2.0 * (layers * tokens + head * scored)


def sample_of(model: Any, plan: TokenPlan) -> tuple[np.ndarray, float]:
    """The oracle's scores, in f32 from the same weights, and how far bf16 may be from them."""
    wide = copy.deepcopy(model).float()
    scores = oracle_scores(wide, plan)
    del wide
    head = Head(model)
    spreads = []
    with torch.inference_mode():
        head.learn(torch.tensor([[1]], device=model.device))
        ids = torch.from_numpy(plan.sequence(0, 0).astype("int64")).to(model.device)[None]
        want = torch.tensor([scores[0, 0]], dtype=torch.float64)
        spreads.append(rounding_spread(head, ids, int(plan.starts[0, 0]), want))
    return scores, 2 * T * max(spreads) + UNIT * float(np.abs(scores).max())


class Ours:
    """One scorer for each plan, as for many candidates."""

    def __init__(self, model: Any, batch_tokens: int) -> None:
        self._model, self._batch_tokens = model, batch_tokens
        self._made: dict[int, Scorer] = {}

    def __call__(self, plan: TokenPlan) -> np.ndarray:
        if id(plan) not in self._made:
            self._made[id(plan)] = Scorer(
                self._model, plan, batch_tokens=self._batch_tokens, path="packed"
            )
        return self._made[id(plan)].run()

    @property
    def fused(self) -> int:
        """Modules of the model that were fused in the last run of every plan, at least."""
        paths = [scorer._path for scorer in self._made.values()]  # noqa: SLF001
        return min(getattr(path.fused, "served", 0) for path in paths)  # type: ignore[union-attr]


def sequences_of(plan: TokenPlan) -> tuple[list[np.ndarray], list[int]]:
    pairs = list(np.ndindex(plan.starts.shape))
    sequences = [plan.sequence(*pair).astype(np.int64) for pair in pairs]
    return sequences, [int(plan.starts[pair]) for pair in pairs]


def peer(model: Any, name: str, batch_tokens: int) -> Work:
    """A way of bench/peers/scorers.py."""
    from bench.peers import scorers

    def run(plan: TokenPlan) -> np.ndarray:
        way = getattr(scorers, name)
        means = way(model, *sequences_of(plan), batch_tokens)
        return np.asarray(means).reshape(plan.starts.shape)

    return run


def ways(model: Any, shape: Shape) -> dict[str, Work]:
    first, *others = shape.batches
    found: dict[str, Work] = {f"avops, {first:,} tokens a pass": Ours(model, first)}
    found["transformers, padded"] = peer(model, "padded", shape.peers_batch)
    found["transformers, packed"] = peer(model, "packed", shape.peers_batch)
    found["lm-evaluation-harness"] = peer(model, "harness", shape.peers_batch)
    return found | {f"avops, {size:,} tokens a pass": Ours(model, size) for size in others}


def measure(
    shape: Shape, device: torch.device, found: dict[str, Any], keep: Kept = nothing
) -> None:
    """Every way in turn, into ``found``; ``keep`` is called after each."""
    found |= {"items": shape.items, "product_flops": _product(shape, device), "ways": {}}
    model, plan = make_model(shape, device), make_plan(shape)
    part = first_items(plan, shape.checked)
    wanted, bound = sample_of(model, part)
    tokens, flop = floor_flop(model, shape)
    parameters = sum(p.numel() for p in model.parameters())
    found |= {"parameters": parameters, "tokens": tokens, "flop": flop, "bound": bound}
    keep()
    for name, work in ways(model, shape).items():
        way = _way(name, work, (plan, part), (wanted, bound), device)
        if "median_s" in way:
            way["tokens_per_s"] = tokens / way["median_s"]
            way["flops"] = flop / way["median_s"]
            way["share_of_product"] = way["flops"] / found["product_flops"]
        found["ways"][name] = way
        keep()


def _product(shape: Shape, device: torch.device) -> float:
    """FLOP a second of a large product in bf16: what the floor can be reached at."""
    size = 2 * shape.hidden
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / timed(lambda: a @ b, device, runs=5).median


def _way(
    name: str,
    work: Work,
    plans: tuple[TokenPlan, TokenPlan],
    truth: tuple[np.ndarray, float],
    device: torch.device,
) -> dict[str, Any]:
    """Seconds of a way, after the sample has warmed it up and was compared."""
    whole, part = plans
    wanted, bound = truth
    try:
        difference = float(np.abs(work(part) - wanted).max())
        if name.startswith("avops") and not difference <= bound:
            return {
                "refused": f"differs from the oracle by {difference:.1e}, where roundings explain "
                f"{bound:.1e}"
            }
        forget(device)
        if name.startswith("avops"):
            work(whole)  # the self-check is for the first candidate only
        seconds = [_clock(work, whole, device)]
        if seconds[0] < _LONG:
            seconds.append(_clock(work, whole, device))
    except ImportError as error:
        return {"missing": f"{error.name} does not import"}
    except torch.OutOfMemoryError:
        return {"missing": "out of memory"}
    except Exception as error:
        # Whatever it is, the next way is tried.
        traceback.print_exc()
        kind = "refused" if name.startswith("avops") else "missing"
        return {kind: f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    figures = {"seconds": seconds, "median_s": statistics.median(seconds)}
    found = {**figures, "off_oracle": difference, "peak_device_bytes": peak(device)}
    if isinstance(work, Ours):
        found["fused_modules"] = work.fused
    forget(device)
    return found


def _clock(work: Work, plan: TokenPlan, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work(plan)
    wait(device)
    return time.perf_counter() - start


def show(found: dict[str, Any]) -> None:
    from bench.report import table

    rows = []
    for name, way in found["ways"].items():
        if "median_s" not in way:
            continue
        most = way.get("peak_device_bytes")
        rows.append(
            [
                name,
                f"{way['median_s']:.2f} [{min(way['seconds']):.2f}, {max(way['seconds']):.2f}]",
                f"{way['tokens_per_s']:,.0f}",
                f"{way['flops'] / 1e12:.0f}",
                f"{way['share_of_product']:.0%}",
                "–" if most is None else f"{most / 2**30:.1f}",
                f"{way['off_oracle']:.1e}",
                str(way.get("fused_modules", "–")),
            ]
        )
    title = (
        f"{found['parameters'] / 1e9:.2f}e9 parameters in bf16, {found['items']} items, "
        f"{found['tokens']:,} tokens of the tree; floor at {found['product_flops'] / 1e12:.0f} "
        f"TFLOP/s: {found['flop'] / found['product_flops']:.2f} s; bound {found['bound']:.1e}"
    )
    columns = (
        "scoring",
        "s",
        "tokens/s",
        "TFLOP/s",
        "of a product",
        "peak GiB",
        "off oracle",
        "fused",
    )
    table(title, columns, rows)
