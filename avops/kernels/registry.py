"""The one place where an operation's backend is chosen.

A backend is a module with ``available() -> (bool, reason)`` and ``run(...)``, named in ``_TABLE``
and imported when first asked for. The first available one in the table's order that reaches the
device is chosen; ``backend=`` or AVOPS_BACKEND forces one, and a forced backend that cannot serve
is an error. AVOPS_BACKEND speaks to the operations that have a backend of its name.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avops import env
from avops.errors import BackendError

# (operation, backend): module. Best first within an operation.
_TABLE = {
    ("combine", "native"): "avops.kernels.combine.native",
    ("combine", "reference"): "avops.kernels.combine.reference",
    ("combine_many", "cuda"): "avops.kernels.many.cuda",
    ("combine_many", "triton"): "avops.kernels.many.triton",
    ("combine_many", "reference"): "avops.kernels.many.reference",
    ("diff", "native"): "avops.kernels.diff.native",
    ("diff", "reference"): "avops.kernels.diff.reference",
    ("gated_mlp", "native"): "avops.kernels.gated_mlp.native",
    ("gated_mlp", "reference"): "avops.kernels.gated_mlp.reference",
    ("gram", "native"): "avops.kernels.gram.native",
    ("gram", "reference"): "avops.kernels.gram.reference",
    ("head_logprob", "triton"): "avops.kernels.head_logprob.triton",
    ("head_logprob", "native"): "avops.kernels.head_logprob.native",
    ("head_logprob", "reference"): "avops.kernels.head_logprob.reference",
    ("linear", "native"): "avops.kernels.linear.native",
    ("linear", "reference"): "avops.kernels.linear.reference",
    ("logprob", "triton"): "avops.kernels.logprob.triton",
    ("logprob", "native"): "avops.kernels.logprob.native",
    ("logprob", "reference"): "avops.kernels.logprob.reference",
    ("lowrank", "native"): "avops.kernels.lowrank.native",
    ("lowrank", "reference"): "avops.kernels.lowrank.reference",
    ("rms_norm", "triton"): "avops.kernels.rms_norm.triton",
    ("rms_norm", "native"): "avops.kernels.rms_norm.native",
    ("rms_norm", "reference"): "avops.kernels.rms_norm.reference",
    ("rope", "triton"): "avops.kernels.rope.triton",
    ("rope", "native"): "avops.kernels.rope.native",
    ("rope", "reference"): "avops.kernels.rope.reference",
    ("swiglu", "triton"): "avops.kernels.swiglu.triton",
    ("swiglu", "native"): "avops.kernels.swiglu.native",
    ("swiglu", "reference"): "avops.kernels.swiglu.reference",
    ("tree_attention", "native"): "avops.kernels.tree_attention.native",
    ("tree_attention", "reference"): "avops.kernels.tree_attention.reference",
}


@dataclass(frozen=True)
class Implementation:
    """One backend of one operation. ``run`` takes what the operation's entry point has checked."""

    operation: str
    backend: str
    run: Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """What `avops doctor` shows of one backend."""

    operation: str
    backend: str
    available: bool
    chosen: bool
    reason: str


def operations() -> tuple[str, ...]:
    """The operations, in the table's order."""
    return tuple(dict.fromkeys(operation for operation, _ in _TABLE))


def backends(operation: str) -> tuple[str, ...]:
    """The backends of ``operation``, best first."""
    return tuple(backend for name, backend in _TABLE if name == operation)


def resolve(
    operation: str, backend: str | Implementation | None = None, *, device: str = "cpu"
) -> Implementation:
    """The implementation that serves ``operation`` on a device of type ``device`` (torch's names).

    backend: a name, None for AVOPS_BACKEND or else the automatic choice, or an implementation
    from an earlier call, which is returned as it is: so a hot loop pays for no lookup.
    Raises BackendError when a forced backend is unknown or cannot serve.
    """
    if isinstance(backend, Implementation):
        if backend.operation != operation:
            raise ValueError(f"an implementation of {backend.operation} cannot serve {operation}")
        return backend
    if backend is not None:
        return _forced(operation, backend, "backend=", device)
    forced = _from_environment(operation)
    if forced is None:
        return _automatic(operation, device)
    return _forced(operation, forced, "AVOPS_BACKEND", device)


def report() -> list[Row]:
    """Every backend of every operation: available or not, chosen or not, and why.

    Raises BackendError when AVOPS_BACKEND names no backend at all.
    """
    rows = []
    for operation in operations():
        forced = _from_environment(operation)
        chosen = None
        for name in backends(operation):
            available, reason = _module(operation, name).available()
            wanted = forced in (None, name)
            if forced == name:
                reason = f"{reason} (forced by AVOPS_BACKEND)"
            if available and wanted and chosen is None:
                chosen = name
            rows.append(Row(operation, name, available, chosen == name, reason))
    return rows


def _module(operation: str, backend: str) -> Any:
    return importlib.import_module(_TABLE[operation, backend])


def _check_known(operation: str, backend: str, source: str) -> None:
    if (operation, backend) not in _TABLE:
        known = ", ".join(backends(operation))
        raise BackendError(f"{source} is {backend!r}, expected a backend of {operation}: {known}")


def _from_environment(operation: str) -> str | None:
    """What AVOPS_BACKEND forces for ``operation``; None if it speaks of other operations."""
    forced = env.backend()
    if forced is None or (operation, forced) in _TABLE:
        return forced
    if forced not in {backend for _, backend in _TABLE}:
        _check_known(operation, forced, "AVOPS_BACKEND")
    return None


def _reaches(module: Any, device: str) -> bool:
    """Whether a backend computes on ``device``: on any, unless it has DEVICES."""
    return device in getattr(module, "DEVICES", (device,))


@functools.cache
def _automatic(operation: str, device: str) -> Implementation:
    for name in backends(operation):
        module = _module(operation, name)
        if _reaches(module, device) and module.available()[0]:
            return Implementation(operation, name, module.run)
    raise BackendError(f"no backend of {operation} can serve; see avops doctor")


@functools.cache
def _forced(operation: str, backend: str, source: str, device: str) -> Implementation:
    _check_known(operation, backend, source)
    module = _module(operation, backend)
    available, reason = module.available()
    if not available:
        raise BackendError(
            f"{source} forces {backend} for {operation}, which cannot serve: {reason}"
        )
    if not _reaches(module, device):
        raise BackendError(
            f"{source} forces {backend} for {operation}, which computes on "
            f"{' and '.join(module.DEVICES)}, not on {device}"
        )
    return Implementation(operation, backend, module.run)
