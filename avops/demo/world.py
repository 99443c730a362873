"""Building the small world: data, tokenizer and base model, one aligned checkpoint per domain.

Checkpoints are f32. Alignment moves each weight by little: rounding base and aligned checkpoints
to bf16 would change the alignment vector itself by .12 of its norm (measured, every domain of
seeds 1 to 5), to save half a megabyte.

Everything runs on one thread: the work per operation is too small to share, and the bits then do
not depend on the number of CPUs. torch's thread count and global generator are left as found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from avops.demo import chat, grammar, manifest, topics
from avops.demo.ipo import align
from avops.demo.phrases import LEVELS
from avops.demo.sizes import SIZES, VERSION, Size
from avops.demo.tokenizer import encode_chat, train_tokenizer
from avops.demo.tokenizer import files as tokenizer_files
from avops.demo.train import initialise, train_base
from avops.disk import open_checkpoint, write_checkpoint
from avops.dtypes import F32
from avops.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DATA = {split: f"data/{split}.jsonl" for split in grammar.SPLITS}
BASE = "base.safetensors"
ALIGNED = {domain: f"aligned/{domain}.safetensors" for domain in topics.FIELDS}
PAIRS = {
    kind: {split: f"data/{kind}-{split}.jsonl" for split in grammar.SPLITS} for kind in chat.KINDS
}
SAFETY = "aligned/safety.safetensors"
SIDECARS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


class Report(Protocol):
    """Who is told about the stages."""

    def stage(self, title: str, why: str) -> None:
        """A stage begins."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """The stage is at ``done`` of ``total``."""

    def done(self, text: str) -> None:
        """The stage ended."""


class _Silent:
    """Tells nobody."""

    def stage(self, title: str, why: str) -> None:
        """See Report."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """See Report."""

    def done(self, text: str) -> None:
        """See Report."""


@dataclass(frozen=True)
class World:
    """What was built, and which stages this run made rather than reused.

    data: items by split. pairs: of safety and helpfulness by split, for a world that has them;
    ``aligned`` then has "safety" beside the domains.
    """

    directory: Path
    seed: int
    size: str
    data: dict[str, Path]
    base: Path
    aligned: dict[str, Path]
    made: tuple[str, ...]
    pairs: dict[str, dict[str, Path]] = field(default_factory=dict)


def build(
    directory: Path, *, seed: int = 1, size: str = "small", report: Report | None = None
) -> World:
    """Make the world of ``seed`` in ``directory``, reusing every stage that is there.

    The same seed and size give the same bytes on the same machine and versions. Raises OutputError
    when the directory holds another world or somebody's files, MissingExtraError without torch or
    transformers.
    """
    if size not in SIZES:
        raise UserError(f"demo size {size!r}, expected one of {', '.join(SIZES)}")
    if not 0 <= seed < 1 << 63:  # what torch's generator takes
        raise UserError(f"demo seed {seed}, expected a whole number from 0 to 2⁶³ − 1")
    directory = Path(directory)
    made = _Builder(directory, seed, size, report or _Silent()).run()
    has_chat = SIZES[size].chat is not None
    aligned = {**ALIGNED, "safety": SAFETY} if has_chat else ALIGNED
    return World(
        directory=directory,
        seed=seed,
        size=size,
        data={split: directory / name for split, name in DATA.items()},
        base=directory / BASE,
        aligned={name: directory / file for name, file in aligned.items()},
        made=tuple(made),
        pairs={
            kind: {split: directory / name for split, name in files.items()}
            for kind, files in (PAIRS if has_chat else {}).items()
        },
    )


class _Builder:
    """The stages of one build, in order."""

    def __init__(self, directory: Path, seed: int, size: str, report: Report) -> None:
        from avops.score import new_model  # first of all: names the extra where it is missing

        self.new_model = new_model
        self.directory, self.seed, self.report = directory, seed, report
        self.size: Size = SIZES[size]
        self.personas = grammar.split_personas(seed)
        self.manifest = manifest.Manifest.open(
            directory,
            {"seed": seed, "size": size, "recipe": VERSION},
            [*self._data_files(), BASE, *SIDECARS, *ALIGNED.values(), SAFETY],
        )

    def run(self) -> list[str]:
        """Make what is missing; returns the stages made."""
        made = []
        self.report.stage(
            "write the data", "queries of invented people, each with an expert, a generic and an "
            "avoiding answer; no person is in two splits"
        )  # fmt: skip
        if self._fresh("data", {}):
            made.append("data")
            self._make_data()
        self.report.stage(
            "train the base model", "a tiny Mistral that knows all three levels, avoidance mostly "
            "from fields it always declines"
        )  # fmt: skip
        if self._fresh("base", {}):
            made.append("base")
            with _one_thread():
                self._make_base()
        purposes = {
            domain: f"prefer expert over generic over avoiding answers to {subject.name} queries"
            for domain, subject in topics.FIELDS.items()
        }
        if self.size.chat is not None:
            purposes["safety"] = "prefer safe over unsafe answers"
        for name, purpose in purposes.items():
            self.report.stage(f"align {name} (IPO)", purpose)
            needs = self.manifest.digests("base")
            if self._fresh(f"align {name}", needs):
                made.append(f"align {name}")
                with _one_thread():
                    self._make_aligned(name, needs)
        return made

    def _data_files(self) -> list[str]:
        pairs = [] if self.size.chat is None else [f for by in PAIRS.values() for f in by.values()]
        return [*DATA.values(), *pairs]

    def _fresh(self, stage: str, needs: manifest.Digests) -> bool:
        """Whether ``stage`` has to be made; says so when it is reused."""
        if self.manifest.made(stage, needs):
            files = ", ".join(self.manifest.digests(stage))
            self.report.done(f"reusing {files}")
            return False
        return True

    def _items(self, split: str, domain: str) -> list[grammar.Record]:
        count = self.size.items[split]
        return grammar.make_items(self.seed, split, domain, count, self.personas[split])

    def _pairs(self, kind: str, split: str) -> list[grammar.Record]:
        assert self.size.chat is not None
        count = self.size.chat.pairs[split]
        return chat.make_pairs(self.seed, split, kind, count, self.personas[split])

    def _publish(self, name: str, records: list[grammar.Record]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        manifest.publish(self.directory / name, lines.encode())

    def _make_data(self) -> None:
        for split, name in DATA.items():
            items = [item for domain in topics.FIELDS for item in self._items(split, domain)]
            self._publish(name, items)
        if self.size.chat is not None:
            for kind, files in PAIRS.items():
                for split, name in files.items():
                    self._publish(name, self._pairs(kind, split))
        self.manifest.record("data", {}, self._data_files())
        counts = ", ".join(f"{len(topics.FIELDS) * n} {s}" for s, n in self.size.items.items())
        self.report.done(f"{counts} items in {self.directory / 'data'}")

    def _make_base(self) -> None:
        size = self.size
        corpus = grammar.base_corpus(self.seed, size.mixture, self.personas["train"])
        if size.chat is not None:
            corpus += chat.base_chats(self.seed, size.chat.examples, self.personas["train"])
        tokenizer = train_tokenizer((text for pair in corpus for text in pair), size.vocabulary)
        config = size.config(tokenizer.get_vocab_size())
        model = self._model(config)
        initialise(model, self.seed, size.spread)
        chats = [encode_chat(tokenizer, query, response) for query, response in corpus]
        order = grammar.stream(self.seed, "order")
        loss = train_base(model, chats, size.schedule, order, self.report.progress)
        generation = {
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 96,
        }  # fmt: skip
        files = {
            "config.json": _json(config),
            "generation_config.json": _json(generation),
            **tokenizer_files(tokenizer),
        }
        for name in SIDECARS:
            manifest.publish(self.directory / name, files[name])
        self._write(BASE, model)
        self.manifest.record("base", {}, [BASE, *SIDECARS])
        count = sum(weight.numel() for weight in model.parameters())
        self.report.done(f"{count:,} weights, {loss:.2f} nats per token at the end")

    def _make_aligned(self, name: str, needs: manifest.Digests) -> None:
        tokenizer, model = self._load_base()
        settings, file = self.size.alignment, ALIGNED.get(name, SAFETY)
        if name in ALIGNED:
            ranked = [
                [encode_chat(tokenizer, item["query"], item["responses"][lv]) for lv in LEVELS]
                for item in self._items("train", name)
            ]
        else:
            assert self.size.chat is not None
            settings = self.size.chat.alignment
            ranked = [
                [encode_chat(tokenizer, pair["prompt"], pair[lv]) for lv in ("chosen", "rejected")]
                for pair in self._pairs("safety", "train")
            ]
        order = grammar.stream(self.seed, f"align {name}")
        margin = align(model, ranked, settings, order, self.report.progress)
        self._write(file, model)
        self.manifest.record(f"align {name}", needs, [file])
        self.report.done(f"mean margin {margin:.2f} nats per token at the end")

    def _model(self, config: Mapping[str, Any]) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            return self.new_model(config)

    def _load_base(self) -> tuple[Tokenizer, Any]:
        """The published base: what is aligned is what is on disk."""
        import numpy as np
        import torch
        from tokenizers import Tokenizer

        config = json.loads((self.directory / "config.json").read_bytes())
        model = self._model(config)
        checkpoint = open_checkpoint(self.directory / BASE)
        data = (self.directory / BASE).read_bytes()
        weights = {
            name: np.frombuffer(data, F32.storage, tensor.count, tensor.offset)
            for name, tensor in checkpoint.tensors.items()
        }
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.from_numpy(weights[name].copy()).view(weight.shape))
        return Tokenizer.from_file(str(self.directory / "tokenizer.json")), model

    def _write(self, name: str, model: Any) -> None:
        tensors = {key: (F32, weight.numpy()) for key, weight in model.state_dict().items()}
        write_checkpoint(self.directory / name, tensors, force=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"
