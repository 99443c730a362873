"""The space of candidates: one axis per alignment vector, λ an integer number of steps on each.

A point is a tuple of these integers, so that no two points stand for one λ (0.1 · 3 is not 0.3 in
floating point), and so that a wider range later finds its old points again.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from avops.errors import RecipeError
from avops.recipe import (
    Source,
    Sources,
    Term,
    exact_text,
    parse_exact,
    range_of,
    round_lam,
    split_spec,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Point = tuple[int, ...]

_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?|[+-]?[0-9]+/[0-9]+")
# Steps from 0 beyond which places would not fit i32.
_FARTHEST = 2**30
# More points than this are not listed; a strategy that samples would be needed.
MAX_POINTS = 2_000_000


@dataclass(frozen=True)
class Axis:
    """λ of one alignment vector: ``step`` times each integer from ``low`` up to ``high``."""

    source: Source
    low: int
    high: int
    step: Fraction

    @property
    def name(self) -> str:
        """The alignment vector's name."""
        return self.source.name

    def __len__(self) -> int:
        return self.high - self.low + 1

    def text(self, place: int) -> str:
        """λ at ``place`` as a plain decimal (a ratio where there is none)."""
        return exact_text(self.step * place)

    def term(self, place: int) -> Term:
        """The term at ``place``."""
        text = self.text(place)
        return Term(self.source, round_lam(self.step * place, self.name, text), text)

    def __str__(self) -> str:
        return f"{self.name}:{self.text(self.low)}:{self.text(self.high)}:{exact_text(self.step)}"


@dataclass(frozen=True)
class Space:
    """Every point of ``axes`` whose Σ|λ| over them is at most ``bound``; ``fixed`` terms stay.

    Terms come out in the order in which they were given: ``order`` names them.
    """

    axes: tuple[Axis, ...]
    fixed: tuple[Term, ...] = ()
    bound: Fraction | None = None
    order: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.grid)

    def __contains__(self, point: object) -> bool:
        return point in self._rows

    @property
    def names(self) -> tuple[str, ...]:
        """The axes' names."""
        return tuple(axis.name for axis in self.axes)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All points, the last axis fastest."""
        return tuple(map(tuple, self.grid.tolist()))

    @cached_property
    def grid(self) -> NDArray[np.int32]:
        """All points as rows, i32 [point, axis]."""
        ranges = [np.arange(axis.low, axis.high + 1, dtype=np.int32) for axis in self.axes]
        mesh = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(self.axes))
        if self.bound is None:
            return mesh
        # In whole numbers: |place| · step_k summed exactly over a common denominator.
        common = math.lcm(*(axis.step.denominator for axis in self.axes))
        steps = np.array([int(axis.step * common) for axis in self.axes], dtype=np.int64)
        return mesh[np.abs(mesh.astype(np.int64)) @ steps <= int(self.bound * common)]

    @cached_property
    def lams(self) -> NDArray[np.float64]:
        """λ of all points, f64 [point, axis]."""
        return self.lams_of(self.grid)

    def lams_of(self, points: NDArray[np.int32] | Sequence[Point]) -> NDArray[np.float64]:
        """λ of ``points``, f64 [point, axis]."""
        steps = np.array([float(axis.step) for axis in self.axes])
        rows = np.asarray(points, dtype=np.float64).reshape(-1, len(self.axes))
        lams: NDArray[np.float64] = rows * steps
        return lams

    def row(self, point: Point) -> int:
        """The place of ``point`` in ``points``. Raises KeyError outside the space."""
        return self._rows[point]

    def neighbours(self, point: Point) -> list[Point]:
        """The points of the space that are one step away on one axis."""
        found = []
        for axis, by in itertools.product(range(len(self.axes)), (-1, 1)):
            moved = (*point[:axis], point[axis] + by, *point[axis + 1 :])
            if moved in self._rows:
                found.append(moved)
        return found

    def nearest(self, lams: Sequence[float]) -> Point:
        """The point of the space nearest to ``lams``, in steps."""
        steps = np.array([float(axis.step) for axis in self.axes])
        away = self.grid - np.asarray(lams) / steps
        return self.points[int(np.argmin((away * away).sum(axis=1)))]

    def terms(self, point: Point) -> tuple[Term, ...]:
        """The recipe's terms at ``point``: those with a λ of the axes and the fixed ones."""
        moving = [axis.term(place) for axis, place in zip(self.axes, point, strict=True)]
        found = {term.name: term for term in (*moving, *self.fixed)}
        return tuple(found[name] for name in (self.order or tuple(found)))

    def name(self, point: Point) -> str:
        """How ``point`` is shown: ``med:-1 fin:0 leg:0.6``."""
        return " ".join(map(str, self.terms(point)))

    @cached_property
    def _rows(self) -> dict[Point, int]:
        return {point: row for row, point in enumerate(self.points)}


def short_names(space: Space) -> dict[str, str]:
    """Each vector's name to what a picture calls it: of a path its stem, where no other has it."""
    names = [*space.names, *(term.name for term in space.fixed)]
    stems = [posixpath.basename(name.rstrip("/")).removesuffix(".safetensors") for name in names]
    return {
        name: stem if stem and stems.count(stem) == 1 and stem not in names else name
        for name, stem in zip(names, stems, strict=True)
    }


def renamed(space: Space, names: Mapping[str, str]) -> Space:
    """``space`` with its vectors called by ``names``, for showing."""

    def source(old: Source) -> Source:
        return replace(old, name=names[old.name])

    return replace(
        space,
        axes=tuple(replace(axis, source=source(axis.source)) for axis in space.axes),
        fixed=tuple(replace(term, source=source(term.source)) for term in space.fixed),
        order=tuple(names[name] for name in space.order),
    )


def parse_space(
    specs: Sequence[str],
    sources: Sources,
    *,
    default: str = "-1:1:.1",
    bound: str | None = None,
) -> Space:
    """The space of texts such as ``med:-1:1:.1``, ``fin`` (the default range), ``leg:.6`` (fixed).

    Raises RecipeError for an unknown or doubled name, for ends that are no multiple of the step,
    for a space without an axis, and for one with more than two million points.
    """
    axes: list[Axis] = []
    fixed: list[Term] = []
    for spec in specs:
        where = f"--av {spec}"
        name, text = _split(spec, sources, default)
        if ":" in text:
            axes.append(_axis(sources.find(name), text, where))
        else:
            exact = parse_exact(text, where)
            fixed.append(Term(sources.find(name), round_lam(exact, where, text), text))
    order = tuple(_split(spec, sources, default)[0] for spec in specs)
    doubled = {name for name in order if order.count(name) > 1}
    if doubled:
        raise RecipeError(f"--av {min(doubled)} is given twice; give each alignment vector once")
    paths: dict[str, str] = {}
    for name in order:
        path = sources.find(name).path
        if path in paths:
            raise RecipeError(
                f"--av {name}: is {path}, as {paths[path]} is; give each alignment vector once"
            )
        paths[path] = name
    if not axes:
        raise RecipeError(
            f"--av {' '.join(specs)}: every λ is fixed, expected at least one range such as "
            "med:-1:1:.1, or a name alone for that range"
        )
    if math.prod(map(len, axes)) > MAX_POINTS:
        raise RecipeError(
            f"--av {' '.join(specs)}: {math.prod(map(len, axes)):,} points, expected at most "
            f"{MAX_POINTS:,}; take larger steps, or fix a λ"
        )
    exact_bound = None if bound is None else parse_exact(bound, "--max-sum", what="Σ|λ|")
    space = Space(tuple(axes), tuple(fixed), exact_bound, order)
    if len(space) == 0:
        raise RecipeError(f"--max-sum {bound}: no point of {' '.join(specs)} has so small a Σ|λ|")
    return space


def _split(spec: str, sources: Sources, default: str) -> tuple[str, str]:
    """Name and λ text of ``spec``; a name alone has the default range."""
    if spec in sources.named or ":" not in spec:
        return spec, default
    return range_of(spec) or _ratio_range(spec) or split_spec(spec)


def _ratio_range(spec: str) -> tuple[str, str] | None:
    """(name, range) of a spec that ends in three numbers of which some are ratios such as 1/3."""
    parts = spec.rsplit(":", 3)
    if len(parts) < 4 or not parts[0] or not all(map(_NUMBER.fullmatch, parts[1:])):
        return None
    return parts[0], ":".join(parts[1:])


def _axis(source: Source, text: str, where: str) -> Axis:
    low, high, step = (parse_exact(part, where) for part in text.split(":"))
    if step <= 0 or low > high:
        raise RecipeError(f"{where}: expected START:STOP:STEP with START ≤ STOP and STEP above 0")
    for end in (low, high):
        if (end / step).denominator != 1:
            first, last = math.ceil(low / step), math.floor(high / step)
            near = ":".join(map(exact_text, (first * step, last * step, step)))
            raise RecipeError(
                f"{where}: {exact_text(end)} is no multiple of the step {exact_text(step)}, "
                "expected both ends to be, so that wider ranges share their points with it; "
                + (f"take {near}" if first <= last else "take another range or step")
            )
    if (high - low) / step >= MAX_POINTS:
        raise RecipeError(f"{where}: more than {MAX_POINTS:,} points; take a larger step")
    if max(abs(low / step), abs(high / step)) > _FARTHEST:
        raise RecipeError(f"{where}: more than 2³⁰ steps away from 0; take a larger step")
    return Axis(source, int(low / step), int(high / step), step)
