"""combine_many against a copy, torch's eager chains, its foreach operations and torch.compile.

Work: base + 3 aligned checkpoints → output, all bf16, tensors of a 7B Mistral (7.2e9 elements) or
many small ones; λ -1, -1, .6. avops is refused figures unless a sample of its outputs equals the
numpy reference and its backends agree in every bit; for torch's ways the share of elements that
differ is counted.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from avops.errors import BackendError
from avops.kernels.many import Entry, Table, Values
from bench import models
from bench.gpu.record import Kept, RefusedError, nothing
from bench.gpu.timing import Timed, allocated, forget, timed, wait

LAMS = (-1.0, -1.0, float(torch.tensor(0.6, dtype=torch.float32)))
# Bytes an element moves: four inputs and one output of two bytes each.
MOVED = 10
_SAMPLED = 8
# Seconds of a run from which fewer of them have to do.
_SLOW = 0.1


@dataclass(frozen=True)
class Tensors:
    """Inputs and outputs of one model: bases, and for each of them its aligned tensors."""

    bases: list[torch.Tensor]
    aligned: list[list[torch.Tensor]]
    outs: list[torch.Tensor]

    @property
    def elements(self) -> int:
        return sum(base.numel() for base in self.bases)


def seven_b() -> list[tuple[int, ...]]:
    return [shape for _, shape in models.Model(4096, 32).tensors()]


def small(count: int = 8_000, elements: int = 16_384) -> list[tuple[int, ...]]:
    """As many tensors as a model of many small ones has; norms, biases, experts' routers."""
    return [(elements + 8 * (i % 7),) for i in range(count)]


def make(shapes: Sequence[tuple[int, ...]], device: torch.device) -> Tensors:
    """Random weights, sd 0.02; aligned ones differ by 1e-3."""
    generator = torch.Generator(device).manual_seed(0)
    bases, aligned, outs = [], [], []
    for shape in shapes:
        base = torch.empty(shape, dtype=torch.bfloat16, device=device)
        base.normal_(0, 0.02, generator=generator)
        noise = [torch.empty_like(base).normal_(0, 1e-3, generator=generator) for _ in LAMS]
        bases.append(base)
        aligned.append([base + one for one in noise])
        outs.append(torch.full_like(base, float("nan")))
    return Tensors(bases, aligned, outs)


def measure(
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
    found: dict[str, Any],
    keep: Kept = nothing,
) -> None:
    """Every way in turn, on one set of tensors, into ``found``; ``keep`` is called after each."""
    tensors = make(shapes, device)
    found |= {"tensors": len(shapes), "elements": tensors.elements, "ways": {}}
    found["copy"] = _copy(tensors, device).figures()
    found["copy"]["bytes_per_s"] = 2 * 2 * tensors.elements / found["copy"]["median_s"]
    keep()
    for dithered in (False, True):
        truth: list[torch.Tensor] | None = None
        for backend in ("cuda", "triton"):
            key = f"avops, {backend}{', dithered' if dithered else ''}"
            truth = _ours(key, tensors, (backend, dithered), truth, found) or truth
            keep()
        if truth is None or dithered:
            continue
        for key, work in _torch_ways(tensors).items():
            _add(key, work, tensors, truth, found)
            keep()


def _ours(
    key: str,
    tensors: Tensors,
    how: tuple[str, bool],
    truth: list[torch.Tensor] | None,
    found: dict[str, Any],
) -> list[torch.Tensor] | None:
    """Measure a backend, by dithered rounding or not. Returns the outputs if they are right."""
    try:
        table = _table(tensors, *how)
        outs = _verified(tensors, table, truth)
        _add(key, lambda: table.run(LAMS), tensors, outs, found)
    except BackendError as error:
        found["ways"][key] = {"missing": str(error)}
    except RefusedError as error:
        found["ways"][key] = {"refused": str(error)}
    except Exception as error:
        # Whatever it is, the next way is tried.
        traceback.print_exc()
        found["ways"][key] = {"refused": f"{type(error).__name__}: {error}"}
    else:
        return outs
    return None


def _add(
    key: str,
    work: Callable[[], object],
    tensors: Tensors,
    truth: list[torch.Tensor],
    found: dict[str, Any],
) -> None:
    """What was measured of a way, beside the copy."""
    way = _measure_way(key, work, tensors, truth)
    if "median_s" in way:
        moved = MOVED * tensors.elements / way["median_s"]
        way["share_of_copy"] = moved / found["copy"]["bytes_per_s"]
    found["ways"][key] = way


def _table(tensors: Tensors, backend: str, dithered: bool) -> Table:
    entries = [
        Entry(base, out, tuple(Values(one, True) for one in aligned), number if dithered else None)
        for number, (base, aligned, out) in enumerate(
            zip(tensors.bases, tensors.aligned, tensors.outs, strict=True)
        )
    ]
    return Table(entries, backend=backend)


def _verified(
    tensors: Tensors, table: Table, truth: list[torch.Tensor] | None
) -> list[torch.Tensor]:
    """The outputs, after holding all to the other backend's, or a sample to the reference."""
    for out in tensors.outs:
        out.fill_(float("nan"))
    table.run(LAMS)
    if truth is not None:
        for number, (out, other) in enumerate(zip(tensors.outs, truth, strict=True)):
            if not torch.equal(out.view(torch.int16), other.view(torch.int16)):
                raise RefusedError(f"tensor {number} is not the other backend's")
        return truth
    step = max(1, len(tensors.outs) // _SAMPLED)
    for number in range(0, len(tensors.outs), step):
        # The largest are cut: numpy takes minutes for them.
        cut = slice(0, 1 << 21)
        entry = table.entries[number]
        flat = [t.reshape(-1)[cut].cpu() for t in (entry.base, *tensors.aligned[number])]
        here = torch.empty_like(flat[0])
        parts = tuple(Values(one, True) for one in flat[1:])
        Table([Entry(flat[0], here, parts, entry.key)], backend="reference").run(LAMS)
        ours = entry.out.reshape(-1)[cut].cpu()
        if not torch.equal(ours.view(torch.int16), here.view(torch.int16)):
            raise RefusedError(f"tensor {number} is not the reference's")
    return [out.clone() for out in tensors.outs]


def _measure_way(
    key: str, work: Callable[[], object], tensors: Tensors, truth: list[torch.Tensor]
) -> dict[str, Any]:
    device = tensors.bases[0].device
    try:
        work()
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        runs = 15 if time.perf_counter() - start < _SLOW else 5
        differing = sum(
            int((out.view(torch.int16) != other.view(torch.int16)).sum())
            for out, other in zip(tensors.outs, truth, strict=True)
        )
        if key.startswith("avops") and differing:
            raise RefusedError(f"{differing} elements changed from run to run")
        before = allocated(device)
        result = timed(work, device, runs=runs).figures()
    except torch.OutOfMemoryError:
        return {"missing": "out of memory"}
    except Exception as error:
        # A peer that does not run must not take the others' figures with it.
        if key.startswith("avops"):
            raise
        return {"missing": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    finally:
        forget(device)
    return {
        **result,
        "differing_share": differing / tensors.elements,
        "allocated_per_run": (allocated(device) - before) / (result["runs"] + 3),
    }


def _torch_ways(tensors: Tensors) -> dict[str, Callable[[], object]]:
    def exact() -> None:
        for base, aligned, out in zip(tensors.bases, tensors.aligned, tensors.outs, strict=True):
            out.copy_(_chain(base, aligned))

    def plain() -> None:
        for base, aligned, out in zip(tensors.bases, tensors.aligned, tensors.outs, strict=True):
            out.copy_(base)
            for one, lam in zip(aligned, LAMS, strict=True):
                out.add_(one - base, alpha=lam)

    def foreach() -> None:
        torch._foreach_copy_(tensors.outs, tensors.bases)
        for k, lam in enumerate(LAMS):
            deltas = torch._foreach_sub([a[k] for a in tensors.aligned], tensors.bases)  # noqa: SLF001
            torch._foreach_add_(tensors.outs, deltas, alpha=lam)

    torch._dynamo.reset()  # noqa: SLF001 - graphs of other cases would be asked first
    compiled = torch.compile(_into, dynamic=False)
    # One graph for each shape: more of them than torch keeps by default is no use to anybody.
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001

    def fused() -> None:
        for base, aligned, out in zip(tensors.bases, tensors.aligned, tensors.outs, strict=True):
            compiled(out, base, *aligned)

    return {
        "torch, eager, float32": exact,
        "torch, eager, bf16": plain,
        "torch, foreach, bf16": foreach,
        "torch.compile": fused,
    }


def _chain(base: torch.Tensor, aligned: Sequence[torch.Tensor]) -> torch.Tensor:
    """The recipe in float32, deltas first."""
    origin = base.float()
    total = LAMS[0] * (aligned[0].float() - origin)
    for one, lam in zip(aligned[1:], LAMS[1:], strict=True):
        total = total + lam * (one.float() - origin)
    return (origin + total).to(base.dtype)


def _into(out: torch.Tensor, base: torch.Tensor, *aligned: torch.Tensor) -> None:
    out.copy_(_chain(base, aligned))


def _copy(tensors: Tensors, device: torch.device) -> Timed:
    """A device-to-device copy of as much as one output holds, in one piece."""
    source = torch.empty(tensors.elements, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source), device)
