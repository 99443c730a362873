"""The atlas in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from avops.search.report import Report, cells, facts_of
from avops.search.store import Store
from made_run import make_run

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=7))
CODES = arrays(
    np.int64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(-3, 2)
)


@given(MASKS)
def test_rectangles_cover_a_mask_once(mask: np.ndarray) -> None:
    covered = np.zeros(mask.shape, int)
    for x, y, width, height in cells.rectangles(mask):
        covered[y : y + height, x : x + width] += 1
    assert np.array_equal(covered, mask)


@given(CODES)
def test_borders_part_what_differs(code: np.ndarray) -> None:
    length = sum(abs(x1 - x0) + abs(y1 - y0) for (x0, y0), (x1, y1) in cells.borders(code))
    assert length == (code[1:] != code[:-1]).sum() + (code[:, 1:] != code[:, :-1]).sum()


@given(CODES)
def test_areas_hold_their_own_middle(code: np.ndarray) -> None:
    plane = cells.Slice((), code.copy(), np.zeros(code.shape, bool), np.zeros(code.shape, "f4"))
    found = cells.areas(plane)
    assert sum(area.size for area in found) == (code >= 0).sum()
    assert all(code[area.y, area.x] == area.code for area in found)
    assert np.array_equal(plane.code, code)  # looked at, not changed


def test_a_number_keeps_off_measured_cells() -> None:
    measured = np.zeros((5, 5), bool)
    measured[2, 2] = True
    plane = cells.Slice((), np.zeros((5, 5), np.int64), measured, np.ones((5, 5), "f4"))
    (area,) = cells.areas(plane)
    assert (area.y, area.x) != (2, 2)


def atlas(directory: Path, *, model: bool = True) -> tuple[Report, cells.Atlas]:
    with Store.read(directory) as store:
        report = Report(facts_of(store, model=model))
    return report, cells.atlas_of(report)


def test_every_measured_point_is_in_its_cell(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 40, given="-1:1:.5")
    report, found = atlas(tmp_path / "run")
    assert found.total == len(found.slices) == 5
    assert sum(int(plane.measured.sum()) for plane in found.slices) == 40
    for point, labels in zip(report.facts.told.points, report.labels, strict=True):
        plane = found.slices[point[0] + 2]
        assert plane.fixed == (("med", report.space.axes[0].text(point[0])),)
        cell = (point[2] + 2, point[1] + 2)
        assert plane.measured[cell]
        assert plane.sure[cell] == 1
        assert plane.code[cell] == (-1 if (labels < 0).any() else report.code(labels))


def test_nothing_is_inferred_without_a_model(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 9, given="-1:1:.5")
    _, found = atlas(tmp_path / "run", model=False)
    for plane in found.slices:
        assert plane.measured.any()  # empty planes are left out
        assert (plane.code[~plane.measured] == cells.UNKNOWN).all()


def test_four_axes_show_the_planes_with_most_points(tmp_path: Path) -> None:
    names = ("med", "fin", "leg", "saf")
    make_run(tmp_path / "run", 60, names=names, given="-1:1:.25", items=4)
    _, found = atlas(tmp_path / "run", model=False)
    assert found.total == 81
    assert len(found.slices) <= cells.MAX_PANELS
    assert {name for name, _ in found.slices[0].fixed} == {"med", "fin"}
    assert (("med", "0"), ("fin", "0")) in [plane.fixed for plane in found.slices]


def test_one_and_two_axes(tmp_path: Path) -> None:
    make_run(tmp_path / "one", 9, names=("med",), domains=("med", "fin"))
    make_run(tmp_path / "two", 30, names=("med", "fin"))
    _, one = atlas(tmp_path / "one", model=False)
    _, two = atlas(tmp_path / "two", model=False)
    assert (one.y, one.slices[0].code.shape) == (None, (1, 21))
    assert (two.x, two.y, two.slices[0].code.shape) == (0, 1, (21, 21))


def test_points_outside_the_bound_are_no_cells(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 12, names=("med", "fin"), given="-1:1:.5", bound="1")
    _, found = atlas(tmp_path / "run", model=False)
    code = found.slices[0].code
    assert (code[0, 0], code[4, 4]) == (cells.OUTSIDE, cells.OUTSIDE)
    assert code[0, 2] != cells.OUTSIDE
