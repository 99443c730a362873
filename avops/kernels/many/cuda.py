"""combine_many in CUDA C++: csrc/combine.cu, launched by cuda-core as cuda_plan.py says."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import BackendError
from avops.kernels.many import cuda_code
from avops.kernels.many.cuda_plan import plan
from avops.kernels.many.device_lams import DeviceLams
from avops.kernels.many.entries import Entry

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda",)

# The first that has what the kernels use, and the driver's numbers for it.
_CAPABILITY = (8, 0)
_MAJOR, _MINOR = 75, 76


@functools.cache
def available() -> tuple[bool, str]:
    """Whether a device, cuda-core and the kernels' code are there; where not, the remedy."""
    found = _capabilities()
    if not found:
        return False, "there is no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    if max(found) < _CAPABILITY:
        return False, f"the CUDA device has {_too_old(max(found))}"
    if importlib.util.find_spec("torch") is None:
        return False, "the package torch is not installed; pip install 'avops[score]'"
    return cuda_code.available()


def run(entries: Sequence[Entry], device: torch.device) -> Prepared:
    """The table of ``entries``, ready to run on ``device``."""
    return Prepared(entries, device)


class Prepared:
    """The table's rows on the device, the launches, and the coefficients' way to the device.

    For CUDA graphs: load() coefficients outside of a capture and capture launch(). A replay, like
    launch() itself, combines with those that were loaded last, run() or not.
    """

    def __init__(self, entries: Sequence[Entry], device: torch.device) -> None:
        import torch

        capability = torch.cuda.get_device_capability(device)
        if capability < _CAPABILITY:
            raise BackendError(f"{device} has {_too_old(capability)}; use another backend")
        self._device = device
        made = plan(entries)
        shape = made.parts.shape[:2]
        arrays = [made.entries, made.parts, *(launch.chunks for launch in made.launches)]
        # Tensors made in inference mode could not be refreshed outside of it.
        with torch.inference_mode(mode=False), torch.cuda.device(device):
            rows = np.concatenate([array.reshape(-1) for array in arrays])
            self._rows = torch.from_numpy(rows).to(device)
            self._counts = torch.zeros((len(entries), 4), dtype=torch.int64, device=device)
            self._loaded = torch.zeros(shape, dtype=torch.float32, device=device)
            # Its copy is waited for, and with it all that is filled above: runs have other streams.
            self._lams = DeviceLams(shape, device)
            kernels = cuda_code.load(made, capability)
        config = cuda_code.core().LaunchConfig
        # Addresses of the rows: entries, parts, then the chunks of each launch.
        starts = self._rows.data_ptr() + 8 * np.cumsum([0, *(array.size for array in arrays)])
        self._table, self._terms = (int(starts[0]), int(starts[1])), shape[1]
        self._launches = [
            (
                config(grid=len(launch.chunks), block=launch.threads),
                kernels[launch.kernel],
                int(start),
                launch.size,
            )
            for launch, start in zip(made.launches, starts[2:-1], strict=True)
        ]

    def run(self, lams: np.ndarray) -> None:
        """Write every out, on the current stream; does not wait. lams: f32 [entries, terms]."""
        with self._lams.ready(lams, (self._rows, self._counts)) as there:
            self._launch(there)

    def load(self, lams: np.ndarray) -> None:
        """Coefficients for launch(). lams: f32 [entries, terms]."""
        import torch

        self._loaded.copy_(torch.from_numpy(lams))

    def launch(self) -> None:
        """Write every out with the coefficients of the last load(), on the current stream."""
        import torch

        with torch.cuda.device(self._device):
            self._launch(self._loaded)

    def counts(self) -> list[list[int]]:
        """(nonfinite, unchanged, overflowed, flushed) of each entry's last run()."""
        self._lams.wait()
        rows: list[list[int]] = self._counts.tolist()
        return rows

    def _launch(self, lams: torch.Tensor) -> None:
        import torch

        self._counts.zero_()
        stream = _Stream(torch.cuda.current_stream(self._device).cuda_stream)
        launch, counts = cuda_code.core().launch, self._counts.data_ptr()
        for config, kernel, chunks, size in self._launches:
            arguments = (*self._table, lams.data_ptr(), chunks, counts, self._terms, size)
            launch(stream, config, kernel, *arguments)


class _Stream:
    """A stream of torch's, by the protocol that cuda-core takes."""

    def __init__(self, handle: int) -> None:
        # 0 and 1 are both the default stream; cuda-core may take 0 for none.
        self._handle = handle or 1

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _capabilities() -> list[tuple[int, int]]:
    """Of the devices that the CUDA driver shows; without torch, which takes long to import."""
    try:
        driver: Any = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        for place, attribute in ((major, _MAJOR), (minor, _MINOR)):
            driver.cuDeviceGetAttribute(ctypes.byref(place), attribute, number)
        found.append((major.value, minor.value))
    return found


def _too_old(capability: tuple[int, int]) -> str:
    found, wanted = (f"{major}.{minor}" for major, minor in (capability, _CAPABILITY))
    return f"compute capability {found}, expected {wanted} or higher"
