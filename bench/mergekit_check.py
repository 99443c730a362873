"""avops and mergekit on the same configs: do they mean the same, and how many elements differ?

    python -m bench.mergekit_check --python /path/to/python/with/mergekit [--json FILE]

Small random Mistral-shaped models; every config is run by mergekit itself, in one process of the
given Python, and by avops. Where mergekit computes in float32 and in avops's order the outputs
must be equal bit for bit; elsewhere the differences are counted and the reason is stated. The exit
status is 1 when outputs that must be equal differ, or others differ by more than rounding can.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avops.disk import encode_header, open_checkpoint
from avops.dtypes import BF16, F16, F32, parse_dtype
from avops.recipe.mergekit import parse_mergekit
from avops.stream import MergeOptions, merge, plan_merge
from bench.report import machine, table

LAYERS, MODELS = 5, 8
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PEER = """
import json, sys, traceback, warnings
warnings.simplefilter("ignore")
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(
    copy_tokenizer=False, write_model_card=False, quiet=True, lora_merge_cache=sys.argv[3]
)
done = {}
for name, text, out in json.load(open(sys.argv[1])):
    try:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, options)
        done[name] = ""
    except Exception as error:
        done[name] = f"{type(error).__name__}: {error}"
json.dump(done, open(sys.argv[2], "w"))
"""
EXACT = "dtype: float32\nout_dtype: bfloat16\n"
# Other orders of operations, and other dtypes: a few roundings of the largest intermediate, each
# 2^-9 relative in bfloat16. A config of another meaning is off by far more.
LIMIT = 2.0**-6


@dataclass(frozen=True)
class Case:
    """A config. reason: why the outputs may differ; empty when they must be equal."""

    name: str
    text: str
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """How far two outputs are from each other.

    differing: elements that are not equal. ulps: the largest distance, in steps of the output
    dtype, many where terms cancel. scaled: the same in steps at the size of the base's or the
    output's element, whichever is larger. norm: of the difference, by the norm of what the merge
    changed.
    """

    elements: int
    differing: int
    ulps: int
    scaled: float
    norm: float


def task(*weights: str, more: str = "", dtypes: str = EXACT) -> str:
    """A task_arithmetic config with these weights, each as YAML."""
    return config("task_arithmetic", *weights, more=f"base_model: m0\n{more}", dtypes=dtypes)


def config(method: str, *weights: str, more: str = "", dtypes: str = EXACT, first: int = 1) -> str:
    lines = [f"merge_method: {method}", "models:"]
    for i, weight in enumerate(weights, first):
        lines.append(f"  - model: m{i}")
        if weight:
            lines += ["    parameters:", f"      weight: {weight}"]
    return "\n".join(lines) + f"\n{more}{dtypes}"


def sliced(first: str, second: str) -> str:
    """Two slices that are the whole model, with these weights of m1 and m2."""
    text = "merge_method: task_arithmetic\nbase_model: m0\nslices:\n"
    for (start, stop), weight in (((0, 2), first), ((2, LAYERS), second)):
        text += "  - sources:\n"
        for model, own in (("m0", ""), ("m1", weight), ("m2", "0.25")):
            text += f"      - model: {model}\n        layer_range: [{start}, {stop}]\n"
            text += f"        parameters: {{weight: {own}}}\n" if own else ""
    return text + EXACT


def equal_cases() -> list[Case]:
    """mergekit in float32 and in avops's order."""
    filters = (
        "[{filter: self_attn, value: -1}, {filter: mlp.down, value: [0, 0.5, 1]}, "
        "{filter: layers.3., value: 0}, {value: 0.6}]"
    )
    return [
        Case("scalars", task("-1", "-1", "0.6")),
        Case("scalars as text", task("'-1e-1'", "1.1e0", "3e-1")),
        Case("one model", task("0.3")),
        Case("seven terms", task(*[f"0.{i}" for i in range(1, MODELS)])),
        Case("gradient", task("[0, 1]", "[-1, 0.5, 0.1]", "[0.3]")),
        Case("gradient, 7 points", task("[0, 0.1, 0.2, 0.7, 0.5, 0.6, -1]")),
        Case("filters, nested gradient", task(filters, "0.3", "-0.7")),
        Case(
            "filter without match", task("{filter: nowhere, value: 9}", more=weight_above("-0.4"))
        ),
        Case(
            "filters above",
            task("", "0.3", more=weight_above("[{filter: mlp, value: 0.2}, {value: 1}]")),
        ),
        Case("lambda 0.5", task("-1", "0.3", more="parameters: {lambda: 0.5}\n")),
        Case(
            "lambda by filter",
            task(
                "-1", "0.3", more="parameters: {lambda: [{filter: mlp, value: 2}, {value: 0.25}]}\n"
            ),
        ),
        Case("normalize, sum 2", task("1.3", "0.7", more="parameters: {normalize: true}\n")),
        Case("normalize, sum 0", task("1.5", "-1.5", more="parameters: {normalize: true}\n")),
        Case("slices", sliced("[0, 1]", "[1, -0.5, 0.3]")),
        Case(
            "base among the models",
            config("task_arithmetic", "9", "0.3", more="base_model: m0\n", first=0),
        ),
        Case("float32 output", task("-1", "-1", "0.6", dtypes="dtype: float32\n")),
        Case("float16 output", task("-1", "0.6", dtypes="dtype: float32\nout_dtype: float16\n")),
    ]


def close_cases() -> list[Case]:
    """mergekit in another order, or another dtype."""
    divided = "the sum is divided, not its weights"
    summed = "weights × models, not differences"
    narrow = "every step is rounded to the dtype"
    return [
        Case(
            "lambda 0.7",
            task("-1", "0.3", more="parameters: {lambda: 0.7}\n"),
            "the sum is rounded before lambda",
        ),
        Case(
            "normalize, sum 0.9",
            task("0.3", "0.6", more="parameters: {normalize: true}\n"),
            divided,
        ),
        Case("dtype bfloat16", task("-1", "-1", "0.6", dtypes="dtype: bfloat16\n"), narrow),
        Case("dtype float16", task("-1", "-1", "0.6", dtypes="dtype: float16\n"), narrow),
        Case("no dtype", task("-1", "-1", "0.6", dtypes=""), narrow),
        Case(
            "adapter on the base",
            task("-1").replace("m1", "m0+lora"),
            "the merged model is rounded first",
        ),
        Case("linear", config("linear", "0.5", "0.3", "0.2"), summed),
        Case(
            "linear, base named",
            config("linear", "0.5", "0.3", "0.2", more="base_model: m1\n"),
            summed,
        ),
        Case(
            "linear, base added",
            config("linear", "0.5", "0.3", more="base_model: m0\n" + weight_above("1")),
            summed,
        ),
        Case(
            "linear, sum 0.7",
            config("linear", "0.4", "0.3", more="parameters: {normalize: false}\n"),
            summed,
        ),
        Case("linear, gradients", config("linear", "[0, 1]", "[1, 0]", "0.5"), summed),
        Case(
            "linear, bfloat16",
            config("linear", "0.5", "0.3", "0.2", dtypes="dtype: bfloat16\n"),
            summed,
        ),
        Case(
            "linear, float32 out",
            config("linear", "0.5", "0.3", "0.2", dtypes="dtype: float32\n"),
            summed,
        ),
    ]


def weight_above(weight: str) -> str:
    return f"parameters:\n  weight: {weight}\n"


def make_models(directory: Path) -> None:
    """m0 … m7: bf16, as sharp as real weights; m1 and up are m0 with differences of a fifth."""
    hidden, ffn, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 16
    vocab = CONFIG["vocab_size"]
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    prefix, _ = encode_header([(n, BF16, s) for n, s in shapes.items()], {"format": "pt"})
    for model in range(MODELS):
        base, step = np.random.default_rng(0), np.random.default_rng(model)
        path = directory / f"m{model}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**CONFIG, "dtype": "bfloat16"}))
        with (path / "model.safetensors").open("wb") as file:
            file.write(prefix)
            for shape in shapes.values():
                values = base.standard_normal(shape, np.float32) * np.float32(0.02)
                if model:
                    values += step.standard_normal(shape, np.float32) * np.float32(0.004)
                file.write((values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes())


def make_adapter(path: Path) -> None:
    """A PEFT LoRA of rank 4 on all q_proj and down_proj."""
    path.mkdir()
    targets = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 48)}
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    words = {**settings, "target_modules": [name.split(".")[1] for name in targets]}
    (path / "adapter_config.json").write_text(json.dumps(words))
    shapes = {}
    for i in range(LAYERS):
        for name, (rows, columns) in targets.items():
            stem = f"base_model.model.model.layers.{i}.{name}"
            shapes |= {f"{stem}.lora_A.weight": (4, columns), f"{stem}.lora_B.weight": (rows, 4)}
    prefix, _ = encode_header([(n, F32, s) for n, s in shapes.items()], {"format": "pt"})
    rng = np.random.default_rng(99)
    with (path / "adapter_model.safetensors").open("wb") as file:
        file.write(prefix)
        for shape in shapes.values():
            file.write((rng.standard_normal(shape, np.float32) * np.float32(0.03)).tobytes())


def run_avops(text: str, out: Path) -> None:
    found = parse_mergekit(text, file="config.yml")
    base = open_checkpoint(found.base.path)
    names = [tensor.name for tensor in base.tensors.values() if tensor.dtype.floating]
    dtype = parse_dtype(found.dtype) if found.dtype else None
    plan = plan_merge(found.recipe(names), out, MergeOptions(dtype=dtype))
    merge(plan, threads=1)


def tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """dtype tag and stored values by name."""
    checkpoint = open_checkpoint(path)
    found = {}
    for tensor in checkpoint.tensors.values():
        file = checkpoint.shards[tensor.shard].path
        storage = np.dtype(tensor.dtype.storage)
        found[tensor.name] = (
            tensor.dtype.tag,
            np.fromfile(file, storage, tensor.count, offset=tensor.offset),
        )
    return found


def wide(tag: str, stored: np.ndarray) -> np.ndarray:
    if tag == BF16.tag:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def ordered(tag: str, stored: np.ndarray) -> np.ndarray:
    """Bit patterns as integers in the order of the values: neighbours are one apart."""
    bits = {F32.tag: 32, F16.tag: 16, BF16.tag: 16}[tag]
    raw = stored.view(f"u{bits // 8}").astype(np.int64)
    magnitude = raw & ((1 << (bits - 1)) - 1)
    return np.where(raw >> (bits - 1), -magnitude, magnitude)


def compare(ours: Path, theirs: Path, base: Path) -> Difference:
    """Raises SystemExit when names or dtypes differ."""
    one, two, start = tensors(ours), tensors(theirs), tensors(base)
    kinds = ({n: tag for n, (tag, _) in found.items()} for found in (one, two))
    if len({tuple(sorted(kind.items())) for kind in kinds}) != 1:
        raise SystemExit(f"{ours.name}: names or dtypes of the two outputs differ")
    elements = differing = ulps = 0
    off = moved = scaled = 0.0
    for name, (tag, mine) in one.items():
        apart = np.abs(ordered(tag, mine) - ordered(tag, two[name][1]))
        elements += apart.size
        differing += int(np.count_nonzero(apart))
        ulps = max(ulps, int(apart.max(initial=0)))
        here, there, origin = wide(tag, mine), wide(tag, two[name][1]), wide(*start[name])
        off += float(np.sum((here - there) ** 2))
        moved += float(np.sum((there - origin) ** 2))
        scale = step(tag, np.maximum(np.abs(origin), np.abs(there)))
        scaled = max(scaled, float((np.abs(here - there) / scale).max(initial=0)))
    norm = (off / moved) ** 0.5 if moved else off**0.5
    return Difference(elements, differing, ulps, scaled, norm)


def step(tag: str, size: np.ndarray) -> np.ndarray:
    """The distance of neighbouring values at ``size`` > 0, subnormals aside."""
    digits = {F32.tag: 24, F16.tag: 11, BF16.tag: 8}[tag]
    return np.exp2(np.frexp(np.maximum(size, 2.0**-14))[1] - digits)


def run_peer(python: str, directory: Path, found: list[Case], texts: Mapping[str, str]) -> None:
    jobs = [(case.name, texts[case.name], str(directory / "theirs" / case.name)) for case in found]
    (directory / "jobs.json").write_text(json.dumps(jobs))
    argv = [python, "-c", PEER, str(directory / "jobs.json"), str(directory / "done.json")]
    argv.append(str(directory / "lora-cache"))
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name, error in json.loads((directory / "done.json").read_text()).items():
        if error:
            raise SystemExit(f"mergekit on {name!r}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="a Python that imports mergekit")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = [
        case for case in (*equal_cases(), *close_cases()) if not args.only or args.only in case.name
    ]
    version = "import importlib.metadata as m; print(m.version('mergekit'))"
    peer = subprocess.run([args.python, "-c", version], check=True, capture_output=True, text=True)
    rows, wrong, results = [], [], {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_models(directory)
        make_adapter(directory / "lora")
        names = [f"m{i}" for i in range(MODELS)]
        texts = {case.name: with_paths(case.text, directory, names) for case in found}
        start = time.perf_counter()
        run_peer(args.python, directory, found, texts)
        seconds = time.perf_counter() - start
        (directory / "ours").mkdir()
        for case in found:
            ours, theirs = directory / "ours" / case.name, directory / "theirs" / case.name
            run_avops(texts[case.name], ours)
            seen = compare(ours, theirs, directory / "m0")
            bad = seen.norm > LIMIT if case.reason else seen.differing > 0
            if bad:
                wrong.append(case.name)
            results[case.name] = vars(seen)
            share = f"{100 * seen.differing / seen.elements:.3g} %"
            verdict = "DIFFERENT" if bad else case.reason or "nothing: equal"
            ulps = (str(seen.ulps), f"{seen.scaled:.3g}")
            rows.append([case.name, share, *ulps, f"{seen.norm:.1e}", verdict])
    columns = ("config", "differ", "max ulp", "scaled", "norm", "what mergekit does otherwise")
    title = f"mergekit {peer.stdout.strip()} against avops, {seen.elements} elements"
    table(title, columns, rows)
    print(f"mergekit took {seconds:.1f} s for {len(found)} configs, start-up included")
    if args.json:
        args.json.write_text(json.dumps({**machine(), "cases": results}) + "\n")
    if wrong:
        raise SystemExit(f"different where it must not be: {', '.join(wrong)}")


def with_paths(text: str, directory: Path, names: list[str]) -> str:
    for name in names:
        text = text.replace(f"model: {name}\n", f"model: {directory / name}\n")
    return text.replace("model: m0+lora", f"model: {directory / 'm0'}+{directory / 'lora'}")


if __name__ == "__main__":
    main()
