"""Scoring as whole processes, in turn: ours, a padded transformers loop, lm-eval's HF backend.

    python -m bench.score [--items 12] [--runs 3] [--lm-eval PYTHON] [--save]

Work: a random-weight model of Mistral's shapes (about 0.13 G parameters), items with a query of 60
to 300 tokens and three responses of 100 to 300: lengths are spread evenly over these ranges, in
random order, so that few items have the mean of many. Every process starts from nothing; seconds
of scoring are counted without loading, seconds of the process with it. Ours count the self-check,
which only the first candidate pays; `each further candidate` is a second run in the same process.
The peak is a row's own process's, from its start until the work is scored once, in all rows: the
largest resident set, with libraries and the pages of the model's file that are mapped.
Figures are printed only if every row of ours agrees with the f32 oracle within the bound of two
f32 evaluations (avops/score/check.py), and a peer's largest difference is shown. In bf16 the bound
is that of two evaluations in bf16.

--layers, --hidden, --vocabulary   another model
--dtype   of all rows' weights and activations
--peer-tokens   of a peer's batch, padding included; 600 (one sequence) and 1024 are its best of
                600, 1024, 2048 and 4096 here, within 4 % of each other
--exact         our exact path, too
--checked       sequences whose bound is measured
--save          puts the case into bench/results/score.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import Run, launch, spread
from bench.report import machine, table

RESULTS = Path(__file__).parent / "results" / "score.json"
PEERS = Path(__file__).parent / "peers" / "scorers.py"
QUERY, RESPONSE, LEVELS = (60, 300), (100, 300), 3
TEMPLATE = 4  # tokens that all items begin with, as a chat template's
NAMES = {
    "packed": "avops",
    "exact": "avops, exact path",
    "padded": "transformers, padded, by an expert",
    "lm-eval": "lm-evaluation-harness, HF backend",
}


def make_model(
    path: Path, hidden: int, layers: int, vocabulary: int, dtype: str = "float32"
) -> int:
    """Write a model with weights in ``dtype``; the number of parameters."""
    import torch

    from avops.score import new_model, save_model

    torch.manual_seed(0)
    model = new_model(
        {
            "model_type": "mistral",
            "hidden_size": hidden,
            "intermediate_size": hidden * 7 // 2,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": max(1, hidden // 256),
            "head_dim": 64,
            "vocab_size": vocabulary,
            "max_position_embeddings": 1024,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "initializer_range": 0.05,
        }
    )
    save_model(path, model.to(getattr(torch, dtype)))
    return sum(parameter.numel() for parameter in model.parameters())


def make_work(path: Path, count: int, vocabulary: int) -> dict[str, int]:
    """Write the token ids of all sequences; how many there are of what."""
    rng = np.random.default_rng(1)
    sequences, starts = [], []
    template = rng.integers(5, vocabulary, TEMPLATE)
    queries, responses = (
        rng.permutation(np.linspace(*ends, parts + 2)[1:-1].astype(int)).tolist()
        for ends, parts in ((QUERY, count), (RESPONSE, count * LEVELS))
    )
    for length in queries:
        query = np.r_[template, rng.integers(5, vocabulary, length - TEMPLATE)]
        for _ in range(LEVELS):
            response = rng.integers(5, vocabulary, responses.pop())
            sequences.append(np.r_[query, response])
            starts.append(query.size)
    lengths = [sequence.size for sequence in sequences]
    np.savez(path, ids=np.concatenate(sequences), lengths=lengths, starts=starts)
    scored = sum(lengths) - sum(starts)
    return {"sequences": len(lengths), "tokens": sum(lengths), "scored": scored}


def load_plan(work: Path) -> Any:
    from avops.score import Item, Items, encode_ids

    data = np.load(work)
    rows = [row.tolist() for row in np.split(data["ids"], np.cumsum(data["lengths"])[:-1])]
    levels = ("exp", "gen", "avd")
    count = len(rows) // LEVELS
    entries = tuple(Item("x", "q", dict.fromkeys(levels, "r"), n + 1) for n in range(count))
    ids = [rows[i * LEVELS : (i + 1) * LEVELS] for i in range(count)]
    starts = data["starts"].reshape(count, LEVELS).tolist()
    return encode_ids(Items("random", levels, entries), ids, starts, score_eos=False)


def score(
    path: str, directory: Path, work: Path, out: Path, batch_tokens: int, dtype: str = "float32"
) -> None:
    """A process of ours. batch_tokens: 0 for the scorer's own."""
    import torch

    from avops.score import Scorer, load_model

    model, plan = load_model(directory, dtype=getattr(torch, dtype)), load_plan(work)
    start = time.perf_counter()
    scorer = Scorer(model, plan, batch_tokens=batch_tokens or None, path=path)
    scores = scorer.run()
    first, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert np.array_equal(scorer.run(), scores)
    again = time.perf_counter() - first
    seconds = first - start
    figures = {"seconds": seconds, "again": again, "peak": peak, "tokens": scorer.tokens}
    np.savez(out, scores=scores.ravel(), **figures)


def truth(
    directory: Path, work: Path, checked: int, dtype: str = "float32"
) -> tuple[np.ndarray, float]:
    """The oracle's scores, and how far another evaluation in ``dtype`` may be from them."""
    import torch

    from avops.score import load_model, oracle_scores
    from avops.score.check import UNIT, T, exact_scores, rounding_spread
    from avops.score.head import Head

    model, plan = load_model(directory), load_plan(work)
    scores = oracle_scores(model, plan)
    model = model.to(getattr(torch, dtype))
    head = Head(model)
    spreads = []
    with torch.inference_mode():
        head.learn(torch.tensor([[1, 2]]))
        for number in range(min(checked, scores.size)):
            item, level = divmod(number, LEVELS)
            ids = torch.from_numpy(plan.sequence(item, level).astype("int64"))[None]
            start = int(plan.starts[item, level])
            want = torch.tensor([scores[item, level]], dtype=torch.float64)
            if dtype != "float32":  # roundings are measured from the same model undisturbed
                want = exact_scores(head, ids, start)
            spreads.append(rounding_spread(head, ids, start, want))
    return scores.ravel(), 2 * T * max(spreads) + UNIT * float(np.abs(scores).max())


class Bench:
    """Rows that score one work in turn."""

    def __init__(self, directory: Path, args: argparse.Namespace) -> None:
        self.args, self.directory = args, directory
        self.model = directory / "model"
        self.work, self.little = directory / "work.npz", directory / "little.npz"
        self.runs: dict[str, list[Run]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.again: dict[str, list[float]] = {}
        self.peaks: dict[str, list[float]] = {}
        self.differences: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def argv(self, key: str, work: Path, out: Path) -> list[str]:
        rest = [str(self.model), str(work), str(out)]
        if key in ("packed", "exact"):
            rest += [str(self.args.batch_tokens or 0), self.args.dtype]
            return [sys.executable, "-m", "bench.score", "--row", key, *rest]
        python = self.args.lm_eval if key == "lm-eval" else sys.executable
        return [python, str(PEERS), key, *rest, str(self.args.peer_tokens), self.args.dtype]

    def run(self, key: str, work: Path) -> tuple[Run, Any]:
        out = self.directory / f"{key}.npz"
        out.unlink(missing_ok=True)
        run = launch(self.argv(key, work, out), out, self.directory / "log.txt")
        return run, np.load(out)

    def measure(self, keys: list[str], wanted: np.ndarray, bound: float) -> None:
        for key in keys:  # libraries and the model into the page cache
            self.run(key, self.little)
        for _ in range(self.args.runs):
            for key in keys:
                run, found = self.run(key, self.work)
                difference = float(np.abs(found["scores"] - wanted).max())
                if key in ("packed", "exact") and not difference <= bound:
                    raise SystemExit(
                        f"{NAMES[key]}: differs from the oracle by {difference:.1e}, where "
                        f"roundings explain {bound:.1e}: no figures"
                    )
                self.differences[key] = difference
                self.tokens[key] = int(found["tokens"])
                self.runs.setdefault(key, []).append(run)
                self.seconds.setdefault(key, []).append(float(found["seconds"]))
                self.peaks.setdefault(key, []).append(float(found["peak"]))
                if "again" in found:
                    self.again.setdefault(key, []).append(float(found["again"]))

    def lines(self, tokens: int) -> list[list[str]]:
        ours = statistics.median(self.seconds["packed"])
        lines = []
        for key, seconds in self.seconds.items():
            runs, again = self.runs[key], self.again.get(key, seconds)
            lines.append(
                [
                    f"{NAMES[key]} ({len(runs)})",
                    spread(seconds),
                    f"{statistics.median(seconds) / ours:.2f}×",
                    f"{statistics.median(again):.2f}",
                    f"{tokens / statistics.median(again):,.0f}",
                    f"{max(self.peaks[key]):.0f}",
                    f"{self.differences[key]:.1e}",
                ]
            )
        return lines

    def figures(self) -> dict[str, Any]:
        """For the results file. A process of ours runs twice: its seconds are not the peers'."""
        return {
            NAMES[key]: {
                "scoring_s": [round(s, 3) for s in seconds],
                "further_s": [round(s, 3) for s in self.again.get(key, [])],
                "process_s": [round(run.wall, 3) for run in self.runs[key]],
                "cpu_s": [round(run.cpu, 3) for run in self.runs[key]],
                "rss_mib": [round(peak) for peak in self.peaks[key]],
                "off_oracle": self.differences[key],
            }
            for key, seconds in self.seconds.items()
        }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--peer-tokens", type=int, default=1024)
    parser.add_argument("--checked", type=int, default=6)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--lm-eval", metavar="PYTHON", help="a Python that imports lm_eval")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--row", nargs=6, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.row:
        path, model, work, out, batch_tokens, dtype = args.row
        score(path, Path(model), Path(work), Path(out), int(batch_tokens), dtype)
        return
    keys = ["packed", *(["exact"] if args.exact else []), "padded"]
    keys += ["lm-eval"] if args.lm_eval else []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), args)
        shape = (args.hidden, args.layers, args.vocabulary)
        parameters = make_model(bench.model, *shape, args.dtype)
        make_work(bench.little, 1, args.vocabulary)
        size = make_work(bench.work, args.items, args.vocabulary)
        wanted, bound = truth(bench.model, bench.work, args.checked, args.dtype)
        bench.measure(keys, wanted, bound)
    columns = ("scoring (runs)", "s", "of ours", "each further candidate s", "tokens/s")
    title = (
        f"{parameters / 1e6:.0f} M parameters, {args.dtype}, vocabulary {args.vocabulary:,}, "
        f"{args.items} items × {LEVELS}, {size['tokens']:,} tokens "
        f"({bench.tokens['packed']:,} packed), bound {bound:.1e}"
    )
    table(title, (*columns, "peak MiB", "off oracle"), bench.lines(size["tokens"]))
    if not args.lm_eval:
        print("  lm-evaluation-harness: not given (--lm-eval PYTHON)")
    if args.save:
        case = f"{parameters / 1e6:.0f} M parameters, {args.dtype}"
        work = {"parameters": parameters, "hidden": args.hidden, "layers": args.layers}
        work |= {"items": args.items, **size, "packed": bench.tokens["packed"], "bound": bound}
        work |= {"peer_tokens": args.peer_tokens, "dtype": args.dtype}
        work |= {"vocabulary": args.vocabulary}
        saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        saved[case] = {**machine(), "work": work, "rows": bench.figures()}
        RESULTS.write_text(json.dumps(saved, indent=2) + "\n")


if __name__ == "__main__":
    main()
