"""Segments: which elements of which files make each tensor of a merge."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from avops.disk import Checkpoint, Tensor, Vector
from avops.disk.garbage import no_collections
from avops.disk.parts import LowRank, Part
from avops.dtypes import F32
from avops.kernels import dither_key
from avops.recipe import Recipe
from avops.stream.layout import Layout, Place
from avops.stream.plan import Input, LowRankRange, Range, Segment, TermRange


class Inputs:
    """The files of a plan, numbered as checkpoints are added."""

    def __init__(self) -> None:
        self._files: list[Input] = []

    def add(self, checkpoint: Checkpoint) -> int:
        """Add the shards of ``checkpoint``. Returns the number of the first."""
        first = len(self._files)
        self._files += [Input(shard.path, shard.identity) for shard in checkpoint.shards]
        return first

    @property
    def files(self) -> tuple[Input, ...]:
        """All files so far."""
        return tuple(self._files)


def merge_segments(
    recipes: Sequence[Recipe],
    base: Checkpoint,
    vectors: Mapping[str, Vector],
    layout: Layout,
    seed: int | None,
) -> tuple[tuple[Input, ...], tuple[Segment, ...]]:
    """The inputs and segments of a merge of ``recipes``, which differ in their λ only.

    vectors: the opened alignment vectors by path; a term without one is zero in all recipes.
    seed: of dithered rounding, None for nearest.
    """
    inputs = Inputs()
    inputs.add(base)
    first = {path: inputs.add(vector.checkpoint) for path, vector in vectors.items()}
    # What is not zero in all recipes: number, name, and parts with the number of their first file.
    active = [
        (number, term.name, vectors[term.source.path].parts, first[term.source.path])
        for number, term in enumerate(recipes[0].terms)
        if term.source.path in vectors
    ]
    with no_collections():
        segments = tuple(_segments(recipes, base, layout, seed, active))
    return inputs.files, segments


def _segments(
    recipes: Sequence[Recipe],
    base: Checkpoint,
    layout: Layout,
    seed: int | None,
    active: Sequence[tuple[int, str, Mapping[str, Part], int]],
) -> Iterator[Segment]:
    for tensor in base.tensors.values():
        terms = []
        for number, name, parts, file in active if tensor.dtype.floating else ():
            part = parts.get(tensor.name)
            if part is not None:
                lams = tuple(recipe.terms[number].lam_of(tensor.name) for recipe in recipes)
                if any(lams):
                    terms.append((part, file, name, number, lams))
        yield from _tensor(tensor, terms, layout.places[tensor.name], seed)


def _tensor(
    tensor: Tensor,
    terms: Sequence[tuple[Part, int, str, int, tuple[float, ...]]],
    place: Place,
    seed: int | None,
) -> list[Segment]:
    """The tensor's segments: one, or more where vocabularies of different sizes end."""
    count = tensor.count
    ends = [count if part.shape == tensor.shape else min(part.count, count) for part, *_ in terms]
    whole = all(end == count for end in ends)
    cuts = [0, count] if whole else sorted({0, *ends, count})
    key = None
    if seed is not None and tensor.dtype.floating and place.dtype != F32:
        key = dither_key(seed, tensor.name)
    segments = []
    for start, stop in itertools.pairwise(cuts):
        here = tuple(
            TermRange(values_of(part, file, start), name, number, lams, part_aligned(part))
            for (part, file, name, number, lams), end in zip(terms, ends, strict=True)
            if end > start
        )
        copy = not here and place.dtype == tensor.dtype
        offset = place.offset + (start * place.dtype.size if start else 0)
        segments.append(
            Segment(
                operation="copy" if copy else "combine",
                tensor=tensor.name,
                count=_copied(tensor, start, stop) if copy else stop - start,
                base=_range(tensor, 0, start),
                terms=here,
                output=place.output,
                offset=offset,
                dtype=place.dtype,
                first=start,
                key=key,
            )
        )
    return segments


def _copied(tensor: Tensor, start: int, stop: int) -> int:
    """Bytes of elements start … stop; tensors of narrower elements than a byte go whole."""
    if (start, stop) == (0, tensor.count):
        return tensor.nbytes
    return (stop - start) * tensor.dtype.size


def _range(tensor: Tensor, file: int, start: int) -> Range:
    skipped = start * tensor.dtype.size if start else 0
    return Range(file + tensor.shard, tensor.offset + skipped, tensor.dtype)


def part_aligned(part: Part) -> bool:
    """Whether ``part`` holds weights rather than differences."""
    return not isinstance(part, LowRank) and part.aligned


def values_of(part: Part, file: int, start: int) -> Range | LowRankRange:
    """Where the values of ``part`` are from element ``start`` on; ``file``: of its first shard."""
    if not isinstance(part, LowRank):
        return _range(part.tensor, file, start)
    return LowRankRange(
        a=_range(part.a, file, 0),
        b=_range(part.b, file, 0),
        rank=part.rank,
        sizes=(part.a.count // part.rank, part.b.count // part.rank),
        scale=part.scale,
        transposed=part.transposed,
    )
