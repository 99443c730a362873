"""combine_many in Triton: triton_kernels.py, launched as triton_plan.py says.

Compiled for CUDA devices; with TRITON_INTERPRET=1 interpreted, on CPU tensors, for tests.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.kernels.many import layout
from avops.kernels.many.device_lams import DeviceLams, HostLams
from avops.kernels.many.entries import Entry
from avops.kernels.many.triton_plan import COMPILED, INTERPRETED, plan

if TYPE_CHECKING:
    import torch

# Of every launch. No product is fused with a sum: the bits are those of separate roundings.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": False}


@functools.cache
def available() -> tuple[bool, str]:
    """Whether Triton is there and has something to compute on, or what it lacks."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return (
                False,
                f"the package {package} is not installed; pip install 'avops[triton]'",
            )
    try:
        import triton
    except ImportError as error:
        return False, f"the package triton does not load: {error}; install it again"
    version = f"Triton {triton.__version__}"
    if _interpreted():
        return True, f"{version}, interpreted on the CPU (TRITON_INTERPRET=1): for tests only"
    devices = _cuda_devices()
    if not devices:
        return False, (
            f"{version} finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES, or set "
            "TRITON_INTERPRET=1 to interpret it on the CPU, for tests"
        )
    return True, f"{version}, for {devices} CUDA device{'s' if devices > 1 else ''}"


def __getattr__(name: str) -> Any:
    """DEVICES: what the kernels compute on; asked for late, since the answer needs Triton."""
    if name == "DEVICES":
        return ("cpu",) if _interpreted() else ("cuda",)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(entries: Sequence[Entry], device: torch.device) -> Prepared:
    """The table of ``entries``, ready to run."""
    return Prepared(entries, device)


@functools.cache
def _interpreted() -> bool:
    """Whether kernels are interpreted: decided, for the process, when they are first imported."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def _cuda_devices() -> int:
    """The devices that the CUDA driver shows; without torch, which takes long to import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


class Prepared:
    """The device-side table, the launches, and the coefficients' way to the device."""

    def __init__(self, entries: Sequence[Entry], device: torch.device) -> None:
        import torch

        from avops.kernels.many import triton_kernels

        launches = plan(entries, INTERPRETED if _interpreted() else COMPILED)
        # Tensors made in inference mode could not be refreshed outside of it.
        with torch.inference_mode(mode=False):
            self._entries = _upload(layout.entry_rows(entries), device)
            self._parts = _upload(layout.part_rows(entries), device)
            self._counts = _upload(np.zeros((len(entries), 4), np.int64), device)
            self._terms = len(entries[0].parts)
            way = DeviceLams if device.type == "cuda" else HostLams
            self._lams: DeviceLams | HostLams = way((len(entries), self._terms), device)
            self._launches = [
                (
                    getattr(triton_kernels, launch.kernel)[(len(launch.chunks),)],
                    _upload(launch.chunks, device),
                    {**launch.options, "num_warps": launch.warps},
                )
                for launch in launches
            ]
        chunks = [chunks for _, chunks, _ in self._launches]
        self._tables = [self._entries, self._parts, self._counts, *chunks]

    def run(self, lams: np.ndarray) -> None:
        """Write every out, on the current stream. lams: f32 [entries, terms]."""
        with self._lams.ready(lams, self._tables) as there:
            self._counts.zero_()
            for launch, chunks, options in self._launches:
                launch(
                    chunks,
                    self._entries,
                    self._parts,
                    there,
                    self._counts,
                    self._terms,
                    **options,
                    **OPTIONS,
                )

    def counts(self) -> list[list[int]]:
        """(nonfinite, unchanged, overflowed, flushed) of each entry."""
        self._lams.wait()
        rows: list[list[int]] = self._counts.tolist()
        return rows


def _upload(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy that is waited for: runs may be on another stream than this."""
    import torch

    # Not even tables without terms have a null address.
    return torch.from_numpy(rows if rows.size else np.zeros(1, rows.dtype)).to(device)
