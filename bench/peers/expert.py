"""Task arithmetic in torch by an expert: THREADS BLOCK BASE OUT LAM=DIRECTORY ...

Inputs are mapped, buffers are made once and used in place, blocks of BLOCK elements (0: whole
tensors) stay in the processor's cache, and the output is streamed shard by shard.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open

threads, block, base, out, *terms = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.set_grad_enabled(False)
lams = [float(term.split("=")[0]) for term in terms]
folders = [Path(base), *(Path(term.split("=")[1]) for term in terms)]
shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))


def header(path: Path) -> tuple[bytes, dict]:
    with path.open("rb") as file:
        size = file.read(8)
        text = file.read(int.from_bytes(size, "little"))
    found = json.loads(text)
    found.pop("__metadata__", None)
    return size + text, found


shards = {path.name: header(path) for path in sorted(folders[0].glob("*.safetensors"))}
largest = max(math.prod(t["shape"]) for _, found in shards.values() for t in found.values())
block = int(block) or largest
origin, delta, total = (torch.empty(block, dtype=torch.float32) for _ in range(3))
result = torch.empty(block, dtype=torch.bfloat16)
raw = memoryview(result.view(torch.uint8).numpy())

for shard, (prefix, tensors) in shards.items():
    models = [safe_open(folder / shard, "pt") for folder in folders]
    with (Path(out) / shard).open("wb", buffering=0) as file:
        file.write(prefix)
        for name in sorted(tensors, key=lambda name: tensors[name]["data_offsets"]):
            values = [model.get_tensor(name).view(-1) for model in models]
            for start in range(0, values[0].numel(), block):
                base_part, *parts = (value[start : start + block] for value in values)
                n = base_part.numel()
                o, d, t = origin[:n], delta[:n], total[:n]
                o.copy_(base_part)
                for i, (lam, part) in enumerate(zip(lams, parts, strict=True)):
                    d.copy_(part).sub_(o)
                    torch.mul(d, lam, out=t) if i == 0 else t.add_(d, alpha=lam)
                result[:n].copy_(o.add_(t))
                file.write(raw[: 2 * n])
