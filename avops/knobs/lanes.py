"""A device as the transfer code sees it: two queues of work, and events between them.

Copies run on one queue, kernels on the other, each in the order they were given, and neither
waits for the other or for the host unless it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from avops import env
from avops.errors import AvopsError
from avops.kernels import registry

if TYPE_CHECKING:
    import torch

COPIES, KERNELS = "copies", "kernels"


class Lane(Protocol):
    """One device. An event stands for everything given to a queue before it was recorded.

    An event that was never recorded is over.
    """

    device: torch.device

    def room(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all there are."""

    def device_memory(self, nbytes: int) -> torch.Tensor:
        """Bytes on the device."""

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """Bytes of the host that the device copies from while the host does other things."""

    def event(self) -> Any:
        """A new event."""

    def check(self) -> None:
        """Raise AvopsError when the queues cannot be given anything now."""

    def begin(self) -> None:
        """Wait until nothing on the device uses the model."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Give a copy from the host to the device to COPIES."""

    def compute(self, work: Callable[[], None]) -> None:
        """Give ``work`` to KERNELS."""

    def record(self, event: Any, queue: str) -> None:
        """Let ``event`` stand for what ``queue`` has been given so far."""

    def after(self, queue: str, event: Any) -> None:
        """Let what ``queue`` is given from now on wait for ``event``."""

    def wait(self, event: Any) -> None:
        """Let the host wait for ``event``."""

    def finish(self) -> None:
        """Let the host wait for both queues."""


class CudaLane:
    """A CUDA device: copies on a stream of their own, kernels on the caller's current stream."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._kernels = torch.cuda.current_stream(device)

    def room(self) -> tuple[int, int]:
        """Bytes that are free, those that torch holds and does not use among them, and all."""
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + unused, total

    def device_memory(self, nbytes: int) -> torch.Tensor:
        """Bytes on the device."""
        import torch

        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """Pinned bytes. torch takes a power of two of them."""
        import torch

        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def event(self) -> torch.cuda.Event:
        """A new event."""
        import torch

        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def check(self) -> None:
        """Raise AvopsError while the caller captures a CUDA graph."""
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise AvopsError(
                "Knobs.set() was called while a CUDA graph is being captured, where it would not "
                "run; call it before or after the capture"
            )

    def begin(self) -> None:
        """Wait for the whole device: forwards may be running on any stream."""
        import torch

        torch.cuda.synchronize(self.device)
        self._kernels = torch.cuda.current_stream(self.device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Give a copy to COPIES."""
        import torch

        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def compute(self, work: Callable[[], None]) -> None:
        """Launch ``work`` on the caller's stream."""
        import torch

        with torch.cuda.stream(self._kernels):
            work()

    def record(self, event: torch.cuda.Event, queue: str) -> None:
        """Record ``event``."""
        event.record(self._stream(queue))

    def after(self, queue: str, event: torch.cuda.Event) -> None:
        """Let ``queue`` wait for ``event``."""
        self._stream(queue).wait_event(event)

    def wait(self, event: torch.cuda.Event) -> None:
        """Let the host wait for ``event``."""
        event.synchronize()

    def finish(self) -> None:
        """Let the host wait for both streams."""
        self._copies.synchronize()
        self._kernels.synchronize()

    def _stream(self, queue: str) -> torch.cuda.Stream:
        return self._copies if queue == COPIES else self._kernels


def lane_of(device: torch.device) -> Lane | None:
    """The lane of ``device``; None where tensors are combined on the host.

    That is on the CPU, and where no kernel reaches the device.
    """
    if device.type != "cuda":
        return None
    backend = registry.resolve("combine_many", device=device.type).backend
    return CudaLane(device) if backend != "reference" or env.backend() else None
