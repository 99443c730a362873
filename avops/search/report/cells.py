"""The atlas as numbers: which combination every cell has, who says so, and where to write it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.search.report.data import Report

NONE = -1
"""Some domain has no dominant level."""
UNKNOWN = -2
"""Neither measured nor inferred."""
OUTSIDE = -3
"""No point of the space."""

Known = tuple["NDArray[np.int64]", "NDArray[np.float32]", "NDArray[np.bool_]"]

MAX_PANELS = 21
_COARSE = 16  # cells across a plane, up to which a cell has room for a number,
_LEAST = 5  # and otherwise an area of so many


@dataclass(frozen=True, eq=False)
class Slice:
    """A plane of the space. code, measured, sure: [y, x]; code as Report.code, or negative.

    fixed: the λ of all axes that the plane does not show.
    """

    fixed: tuple[tuple[str, str], ...]
    code: NDArray[np.int64]
    measured: NDArray[np.bool_]
    sure: NDArray[np.float32]


@dataclass(frozen=True)
class Area:
    """A connected area of one combination: where its number has most room (x, y), and its size."""

    code: int
    x: int
    y: int
    size: int


@dataclass(frozen=True, eq=False)
class Atlas:
    """x, y: numbers of the axes that planes show; y is None of a space with one axis.

    total: slices there are; ``slices`` may be fewer.
    """

    x: int
    y: int | None
    slices: tuple[Slice, ...]
    total: int


def atlas_of(report: Report) -> Atlas:
    """The cells of a report: all slices of a cube, chosen ones of a larger space."""
    space = report.space
    count = len(space.axes)
    x, y = (0, None) if count == 1 else (count - 2, count - 1)
    if count == 2:
        x, y = 0, 1
    others = [k for k in range(count) if k not in (x, y)]
    known = _known(report)
    places = [range(space.axes[k].low, space.axes[k].high + 1) for k in others]
    total = 1
    for places_of in places:
        total *= len(places_of)
    fixed = _chosen(report, others, places, total)
    slices = tuple(
        _slice(report, known, (x, y), dict(zip(others, at, strict=True))) for at in fixed
    )
    return Atlas(x, y, slices, total)


def areas(plane: Slice) -> list[Area]:
    """Every connected area that has a combination, largest first."""
    left = plane.code >= 0
    found = []
    height, width = left.shape
    for y, x in zip(*np.nonzero(left), strict=True):
        if not left[y, x]:
            continue
        code = plane.code[y, x]
        cells, edge = [(int(y), int(x))], [(int(y), int(x))]
        left[y, x] = False
        while edge:
            at = edge.pop()
            for ny, nx in _beside(*at):
                inside = 0 <= ny < height and 0 <= nx < width
                if inside and left[ny, nx] and plane.code[ny, nx] == code:
                    left[ny, nx] = False
                    cells.append((ny, nx))
                    edge.append((ny, nx))
        middle = _middle(cells, plane.measured)
        found.append(Area(int(code), middle[1], middle[0], len(cells)))
    return sorted(found, key=lambda area: -area.size)


def numbered(plane: Slice) -> list[Area]:
    """The areas that have room for a number."""
    least = 1 if max(plane.code.shape) <= _COARSE else _LEAST
    return [area for area in areas(plane) if area.size >= least]


def present(atlas: Atlas) -> list[int]:
    """All combinations of the atlas, in order."""
    return sorted(
        {int(code) for part in atlas.slices for code in np.unique(part.code) if code >= 0}
    )


def rectangles(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
    """``mask`` as few rectangles (x, y, width, height): equal runs of rows are joined."""
    height = len(mask)
    open_runs: dict[tuple[int, int], int] = {}
    for y in range(height + 1):
        runs = set(_runs(mask[y])) if y < height else set()
        for run in [run for run in open_runs if run not in runs]:
            start = open_runs.pop(run)
            yield run[0], start, run[1] - run[0], y - start
        for run in runs:
            open_runs.setdefault(run, y)


def borders(code: NDArray[np.int64]) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Lines between cells of different combinations, as (x, y) of both ends, in cells."""
    height, width = code.shape
    across = code[1:] != code[:-1]
    for y in range(height - 1):
        for start, stop in _runs(across[y]):
            yield (start - 0.5, y + 0.5), (stop - 0.5, y + 0.5)
    upright = code[:, 1:] != code[:, :-1]
    for x in range(width - 1):
        for start, stop in _runs(upright[:, x]):
            yield (x + 0.5, start - 0.5), (x + 0.5, stop - 0.5)


def _known(report: Report) -> Known:
    """Code, certainty (1 where measured) and whether it was measured, of every point."""
    space, outlook = report.space, report.inferred
    codes = np.full(len(space), UNKNOWN, np.int64)
    sure = np.zeros(len(space), np.float32)
    if outlook is not None:
        codes, sure = _coded(report, outlook.labels), outlook.sure.copy()
    seen = np.zeros(len(space), np.bool_)
    if report.facts.told.points:
        rows = [space.row(point) for point in report.facts.told.points]
        codes[rows], sure[rows], seen[rows] = _coded(report, report.labels), 1, True
    return codes, sure, seen


def _coded(report: Report, labels: NDArray[np.int16]) -> NDArray[np.int64]:
    codes = np.zeros(len(labels), np.int64)
    for column in labels.T:
        codes = codes * len(report.part.levels) + column
    return np.where((labels < 0).any(axis=1), NONE, codes)


def _chosen(
    report: Report, others: list[int], places: list[range], total: int
) -> list[tuple[int, ...]]:
    """The planes to show: all, evenly spaced ones, or those with most measured points.

    Where nothing is inferred, a plane without a measured point is empty, and left out.
    """
    everything = report.inferred is not None
    if total <= MAX_PANELS and everything:
        return list(itertools.product(*places))
    if len(others) == 1 and everything:
        (axis,) = places
        at = np.linspace(0, len(axis) - 1, MAX_PANELS).round().astype(int)
        return [(axis[i],) for i in dict.fromkeys(at.tolist())]
    points = report.facts.told.points
    counts = Counter(tuple(point[k] for k in others) for point in points)
    best = sorted(counts, key=lambda at: (-counts[at], sum(map(abs, at)), at))
    return sorted(best[:MAX_PANELS]) or [tuple(0 for _ in others)]


def _slice(
    report: Report,
    known: Known,
    shown: tuple[int, int | None],
    fixed: dict[int, int],
) -> Slice:
    space, (codes, sure, seen) = report.space, known
    grid = space.grid
    keep = np.ones(len(grid), np.bool_)
    for axis, place in fixed.items():
        keep &= grid[:, axis] == place
    x, y = shown
    width, height = len(space.axes[x]), 1 if y is None else len(space.axes[y])
    columns = grid[keep, x] - space.axes[x].low
    lines = np.zeros_like(columns) if y is None else grid[keep, y] - space.axes[y].low
    code = np.full((height, width), OUTSIDE, np.int64)
    certain = np.zeros((height, width), np.float32)
    measured = np.zeros((height, width), np.bool_)
    code[lines, columns], certain[lines, columns] = codes[keep], sure[keep]
    measured[lines, columns] = seen[keep]
    names = tuple((space.names[k], space.axes[k].text(place)) for k, place in fixed.items())
    return Slice(names, code, measured, certain)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of every run of True."""
    steps = np.flatnonzero(np.diff(np.concatenate(([False], line, [False])).astype(np.int8)))
    return list(zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True))


def _beside(y: int, x: int) -> tuple[tuple[int, int], ...]:
    return (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)


def _middle(cells: list[tuple[int, int]], measured: NDArray[np.bool_]) -> tuple[int, int]:
    """The cell farthest from the edge and from measured cells; of several, the middle one."""
    free = [cell for cell in cells if not measured[cell]]
    left, last = set(free or cells), free or cells
    while left:
        last = sorted(left)
        left = {cell for cell in left if all(near in left for near in _beside(*cell))}
    y, x = (sum(part) / len(last) for part in zip(*last, strict=True))
    return min(last, key=lambda cell: (cell[0] - y) ** 2 + (cell[1] - x) ** 2)
