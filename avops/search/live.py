"""A base with its alignment vectors as one model, whose λ is set again and again.

Opening reads headers only, so that what does not fit is refused before anything large is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.disk import Checkpoint, Vector, check_distinct, open_base, open_vector
from avops.errors import DataError, UserError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from avops.knobs import Options
    from avops.recipe import Source, Term
    from avops.score.device_map import DeviceMap

# Weights below which threads wait for each other longer than they compute.
_SMALL = 5_000_000


@dataclass(frozen=True)
class Opened:
    """A base and alignment vectors by name, checked against each other, not loaded yet."""

    base: Checkpoint
    vectors: Mapping[str, Vector]

    @classmethod
    def of(cls, base: str, sources: Sequence[Source]) -> Opened:
        """Open the checkpoint ``base`` and ``sources``."""
        checkpoint = open_base(base)
        vectors = {s.name: open_vector(s.name, s.path, s.kind) for s in sources}
        check_distinct(vectors.values())
        return cls(checkpoint, vectors)

    @property
    def sidecars(self) -> Path:
        """The directory with the base's config and tokenizer."""
        # "" would mean the current directory to us, but not to transformers.
        return self.base.directory if str(self.base.directory) else Path()


class LiveModel:
    """θ(λ) in a model of transformers, loaded once, on ``device`` or cut by ``device_map``.

    Weights are rounded to the base's dtype, as `avops merge` would write them, and computed on in
    float32; with ``dtype`` bf16 they are rounded to that, and computed on in it. device: ``auto``
    takes the first CUDA device if there is one. device_map: over several, see ``load_model``;
    ``device`` is then left at ``auto``. options: of Knobs, such as rounding, seed, where, skip.
    """

    def __init__(
        self,
        opened: Opened,
        device: str = "auto",
        *,
        device_map: DeviceMap | None = None,
        dtype: str = "f32",
        **options: Unpack[Options],
    ) -> None:
        from avops.knobs import Knobs
        from avops.score.device_map import devices_of

        _check_rules(opened, options)
        self.dtype = dtype
        if device_map is None:
            self.device = _device(device)
            self.model = _load(opened, device=self.device, dtype=_kind(dtype))
        else:
            self.model = _spread(opened, device_map, device, dtype)
            self.device = ",".join(devices_of(self.model))
        if dtype == "bf16":
            _narrow(self.model)
        self.knobs = (
            Knobs(self.model, opened.vectors, base=opened.base, **options)
            if opened.vectors
            else None
        )
        self._weights = sum(parameter.numel() for parameter in self.model.parameters())

    def set(self, terms: Sequence[Term] = ()) -> None:
        """Load the recipe with ``terms``, whose vectors must be held; the others are 0."""
        if self.knobs is not None:
            # Exactly, as a rule's factor is multiplied by what was written.
            self.knobs.set({term.name: term.exact for term in terms})
        elif terms:
            raise DataError("no alignment vectors are held; name them in Setup.sources")

    @contextmanager
    def threads(self) -> Iterator[None]:
        """One torch thread for a small model: no slower, and far faster on a busy machine."""
        import torch

        before = torch.get_num_threads()
        if self._weights < _SMALL:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _check_rules(opened: Opened, options: Options) -> None:
    """Refuse rules that name or match nothing before a model is loaded. Raises RecipeError."""
    from avops.knobs.dials import Dials, parse_rules

    rules = parse_rules(options.get("where", ()), options.get("skip", ()))
    floating = [tensor.name for tensor in opened.base.tensors.values() if tensor.dtype.floating]
    Dials(tuple(opened.vectors), rules, floating, str(opened.base.path))


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


def _load(opened: Opened, **where: Any) -> Any:
    from avops.score import load_model

    if not opened.base.is_file:
        return load_model(opened.base.directory, **where)
    return load_model(opened.sidecars, weights=_weights(opened.base), **where)


def _spread(opened: Opened, device_map: DeviceMap, device: str, dtype: str) -> Any:
    """The model cut by ``device_map``, which counts bytes: loaded in its dtype at once."""
    if device != "auto":
        raise UserError(
            f"device {device} with a device_map: the map says where everything is; leave one out"
        )
    return _load(opened, device_map=device_map, dtype=_kind(dtype))


def _kind(dtype: str) -> Any:
    """The torch dtype of what a model is loaded in."""
    import torch

    return torch.bfloat16 if dtype == "bf16" else torch.float32


def _narrow(model: Any) -> None:
    """Parameters only: buffers, such as the angles of rotary positions, are f32 in any dtype."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)


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
