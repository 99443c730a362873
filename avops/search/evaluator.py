"""The one bridge between recipes and scores: θ(λ) in, S[item, level] out.

Items, tokens, base and alignment vectors are loaded once; each evaluation sets the weights in
place from the pristine base and runs the scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.disk import Checkpoint, check_distinct, open_base, open_vector
from avops.errors import DataError
from avops.recipe import Source, Term
from avops.score import load_items

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Weights below which threads wait for each other longer than they compute.
_SMALL = 5_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Setup:
    """What to evaluate: paths, levels, and how queries become tokens.

    base: checkpoint (config and tokenizer are taken from beside it). sources: the alignment
    vectors to hold. data: items as JSON lines. levels: None for those of the items. tokenizer:
    a directory, None for the base's. template: None for the tokenizer's chat template.
    device: ``auto`` takes the first CUDA device if there is one.
    """

    base: str
    sources: tuple[Source, ...]
    data: str
    levels: tuple[str, ...] | None = None
    tokenizer: str | None = None
    template: str | None = None
    device: str = "auto"


class Evaluator:
    """Scores recipes over one base, one set of alignment vectors and one set of items.

    Weights are rounded to the base's dtype, as `avops merge` would write them, and computed on in
    float32. Raises the errors of every room it passes through; nothing is loaded twice.
    """

    def __init__(self, setup: Setup) -> None:
        # Cheap checks first: a bad item must not wait for a model to load.
        self.items = load_items(setup.data, levels=setup.levels)
        checkpoint = open_base(setup.base)
        vectors = {s.name: open_vector(s.name, s.path, s.kind) for s in setup.sources}
        check_distinct(vectors.values())

        from avops.knobs import Knobs
        from avops.score import Scorer, encode, load_tokenizer

        tokenizer = load_tokenizer(setup.tokenizer or _sidecars(checkpoint))
        self.plan = encode(self.items, tokenizer, template=setup.template)
        self.device = _device(setup.device)
        model = _load(checkpoint, self.device)
        self.knobs = Knobs(model, vectors, base=checkpoint) if vectors else None
        self.scorer = Scorer(model, self.plan)
        self._weights = sum(parameter.numel() for parameter in model.parameters())

    def evaluate(
        self, terms: Sequence[Term] = (), progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """S[item, level], float32, of the recipe with ``terms`` (their sources must be held).

        ``progress(done, total)`` gets tokens.
        """
        if self.knobs is not None:
            self.knobs.set({term.name: term.lam for term in terms})
        elif terms:
            raise DataError("no alignment vectors are held; name them in Setup.sources")
        with self._threads():
            return self.scorer.run(progress)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """One torch thread for a small model: no slower, and far faster on a busy machine."""
        import torch

        before = torch.get_num_threads()
        if self._weights < _SMALL:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _sidecars(checkpoint: Checkpoint) -> Path:
    # "" would mean the current directory to us, but not to transformers.
    return checkpoint.directory if str(checkpoint.directory) else Path()


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"--device {name}: cannot be used: {first}; try --device cpu") from None
    return name


def _load(checkpoint: Checkpoint, device: str) -> Any:
    from avops.score import load_model

    if not checkpoint.is_file:
        return load_model(checkpoint.directory, device=device)
    return load_model(_sidecars(checkpoint), device=device, weights=_weights(checkpoint))


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """All tensors of a single-file checkpoint in their own dtypes."""
    import torch

    from avops.knobs import Mapped

    mapped = Mapped(checkpoint)
    weights = {}
    for name, tensor in checkpoint.tensors.items():
        dtype = getattr(torch, tensor.dtype.torch or "", None)
        if dtype is None:
            raise DataError(f"{checkpoint.path}: tensor {name!r} is {tensor}, which torch lacks")
        raw = torch.from_numpy(mapped.raw(tensor).copy())
        weights[name] = raw.view(dtype).view(tensor.shape)
    return weights
