"""combine_many once on a few small, awkward tensors: for tools that watch every access.

compute-sanitizer python -m bench.gpu.small
"""

from __future__ import annotations

import torch

from avops.kernels.many import Entry, LowRank, Table, Values

LENGTHS = (1, 7, 64, 1999, 8193)


def entries(device: torch.device) -> list[Entry]:
    """Every dtype, stored and low-rank parts, starts that are not aligned, dithered and not."""
    found = []
    for number, n in enumerate(LENGTHS):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            base, aligned = (_random(n + 1, dtype, device)[1:] for _ in range(2))
            delta = _random(n, torch.float32, device)
            low = LowRank(_random(n * 3, torch.float32, device).reshape(n, 3),
                          _random(3, torch.float32, device).reshape(3, 1), 0.5)  # fmt: skip
            parts = (Values(aligned, True), Values(delta, False), low)
            out = torch.empty(n + 3, dtype=dtype, device=device)[3:]
            found.append(Entry(base, out, parts, key=number if n % 2 else None))
    return found


def _random(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(n, device=device).mul(0.02).to(dtype)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = entries(device)
    for backend in ("cuda", "triton") if device.type == "cuda" else ("reference",):
        table = Table(made, backend=backend)
        table.run([0.5, -1.0, 0.25])
        print(f"{backend}: {sum(stats.unchanged for stats in table.counts())} unchanged")


if __name__ == "__main__":
    main()
