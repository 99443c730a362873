"""Spaces: exact λ, bounds, fixed terms, order, neighbours."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avops.errors import RecipeError
from avops.recipe import Source, Sources, Term, exact_text, parse_lam
from avops.search.space import MAX_POINTS, Axis, Space, parse_space, renamed, short_names

NAMES = ("med", "fin", "leg", "a:b")
SOURCES = Sources({name: Source(name, f"{name}.safetensors") for name in NAMES})
MED = SOURCES.named["med"]


def parse(*specs: str, bound: str | None = None) -> Space:
    return parse_space(specs, SOURCES, bound=bound)


def test_a_lam_is_its_step_times_a_whole_number() -> None:
    """0.1 · 3 is not 0.3 in floating point; the term at place 3 is what `med:.3` parses to."""
    space = parse("med:-1:1:.1")
    term = space.terms((3,))[0]
    assert (term.text, term.lam) == ("0.3", parse_lam(".3", "test"))
    assert (term.lam, term.exact) == (float(np.float32(0.3)), Fraction(3, 10))
    assert len({space.terms(point)[0].lam for point in space.points}) == len(space) == 21
    assert [space.axes[0].text(place) for place in (-10, -1, 0, 10)] == ["-1", "-0.1", "0", "1"]


def test_ratios_are_exact() -> None:
    space = Space((Axis(MED, -3, 3, Fraction(1, 3)),))
    assert [space.axes[0].text(place) for (place,) in space.points] == [
        "-1", "-2/3", "-1/3", "0", "1/3", "2/3", "1",
    ]  # fmt: skip
    assert space.terms((1,))[0].lam == parse_lam("1/3", "test")
    assert str(space.axes[0]) == "med:-1:1:1/3"


def test_a_ratio_is_a_step_on_the_command_line() -> None:
    space = parse("med:-1:1:1/3")
    assert len(space) == 7
    assert space.axes[0].step == Fraction(1, 3)


def test_two_names_of_one_file_are_refused() -> None:
    both = Sources({name: Source(name, "x.safetensors") for name in ("med", "fin")})
    with pytest.raises(RecipeError, match=r"--av fin: is x.safetensors, as med is"):
        parse_space(["med", "fin:.5"], both)


def test_places_too_far_for_whole_numbers_are_refused() -> None:
    with pytest.raises(RecipeError, match="away from 0; take a larger step"):
        parse("med:3000000000:3000000001:1")


def test_a_wider_range_finds_its_old_points_again() -> None:
    small, wide = parse("med:-.5:.5:.1", "fin"), parse("med:-1.5:2:.1", "fin")
    assert set(small.points) < set(wide.points)
    for point in small.points:
        assert small.terms(point) == wide.terms(point)


def test_points_are_listed_with_the_last_axis_fastest() -> None:
    space = parse("med:0:.2:.1", "fin:-.5:.5:.5")
    assert space.points == tuple(itertools.product((0, 1, 2), (-1, 0, 1)))
    assert [space.row(point) for point in space.points] == list(range(9))
    assert space.grid.tolist() == [list(point) for point in space.points]
    assert space.lams[space.row((2, -1))].tolist() == [0.2, -0.5]
    assert space.lams_of([(2, -1)]).shape == (1, 2)
    assert space.lams_of([]).shape == (0, 2)
    assert space.names == ("med", "fin")
    assert (2, 1) in space
    assert (3, 1) not in space
    with pytest.raises(KeyError):
        space.row((3, 1))


def test_the_default_range_and_fixed_terms() -> None:
    space = parse("leg:.6", "med", "fin:-1:1:.5")
    assert [str(axis) for axis in space.axes] == ["med:-1:1:0.1", "fin:-1:1:0.5"]
    assert space.fixed == (Term(SOURCES.named["leg"], parse_lam(".6", ""), ".6"),)
    # In the order in which they were given: the sum of three terms depends on it.
    assert [str(term) for term in space.terms((-10, 1))] == ["leg:.6", "med:-1", "fin:0.5"]
    assert space.name((-10, 1)) == "leg:.6 med:-1 fin:0.5"


def test_a_space_made_by_hand_has_its_axes_first() -> None:
    axes = (Axis(MED, 0, 1, Fraction(1)),)
    space = Space(axes, (Term(SOURCES.named["leg"], 1.0, "1"),))
    assert space.name((1,)) == "med:1 leg:1"


def test_a_name_that_holds_a_colon_is_a_name() -> None:
    assert parse("a:b").names == ("a:b",)
    assert str(parse("a:b:0:1:.5").axes[0]) == "a:b:0:1:0.5"


@given(
    st.lists(
        st.tuples(st.integers(-4, 0), st.integers(0, 4), st.sampled_from(["1/3", ".1", ".25"])),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["0", ".1", "1/3", ".5", ".7", "1.2", "2"]),
)
def test_the_bound_is_exact(ranges: list[tuple[int, int, str]], bound: str) -> None:
    axes = tuple(
        Axis(SOURCES.named[name], low, high, Fraction(step))
        for name, (low, high, step) in zip(NAMES, ranges, strict=False)
    )
    space = Space(axes, bound=Fraction(bound))
    whole = itertools.product(*(range(axis.low, axis.high + 1) for axis in axes))
    expected = [
        point
        for point in whole
        if sum(abs(p) * a.step for p, a in zip(point, axes, strict=True)) <= Fraction(bound)
    ]
    assert list(space.points) == expected
    assert len(space) == len(expected)


def test_a_sum_on_the_bound_is_inside() -> None:
    """.1 + .2 is above .3 in floating point."""
    space = parse("med:0:1:.1", "fin:0:1:.1", bound=".3")
    assert (1, 2) in space
    assert (2, 2) not in space
    assert len(space) == 10


def test_neighbours_are_one_step_away_and_inside() -> None:
    space = parse("med:-1:1:1", "fin:-1:1:1", bound="1")
    assert space.neighbours((0, 0)) == [(-1, 0), (1, 0), (0, -1), (0, 1)]
    assert space.neighbours((1, 0)) == [(0, 0)]


def test_the_nearest_point_counts_in_steps() -> None:
    space = parse("med:-1:1:.1", "fin:-1:1:.5")
    assert space.nearest([0.34, 0.3]) == (3, 1)
    assert space.nearest([9, -9]) == (10, -2)
    assert parse("med:.5:1:.1").nearest([0]) == (5,)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["med", "med:.5"], "--av med is given twice"),
        (["med:.5", "fin:1"], "every λ is fixed, expected at least one range such as med:-1:1:.1"),
        (["med:-1:1:.3"], "share their points with it; take -0.9:0.9:0.3"),
        (["med:-1:1:.3"], "-1 is no multiple of the step 0.3, expected both ends to be"),
        (["med:.1:.2:.3"], "take another range or step"),
        (["med:0:1:.3"], "1 is no multiple of the step 0.3"),
        (["med:1:-1:.1"], "expected START:STOP:STEP with START ≤ STOP and STEP above 0"),
        (["med:-1:1:0"], "expected START:STOP:STEP with START ≤ STOP and STEP above 0"),
        (["med:-1:1:-.1"], "STEP above 0"),
        (["med:-1:1:x"], "'x', expected a finite decimal number"),
        (["med:x"], "'x', expected a finite decimal number"),
        (["nowhere"], "--av nowhere: no alignment vector has this name"),
        (["fim"], "did you mean fin?"),
        (["med:0:1:1e-9"], "more than 2,000,000 points; take a larger step"),
        (["med:-1073741825:-1073741824:1"], "more than 2³⁰ steps away from 0"),
        (["med:1073741824:1073741825:1"], "more than 2³⁰ steps away from 0"),
        (["med:0:1:.001", "fin:0:1:.0001"], "10,011,001 points, expected at most 2,000,000"),
    ],
)
def test_what_is_refused(specs: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse(*specs)
    assert message in str(error.value)
    assert "--av" in str(error.value)


def test_the_largest_space_is_taken() -> None:
    assert len(parse(f"med:1:{MAX_POINTS}:1").axes[0]) == MAX_POINTS


@pytest.mark.parametrize(
    ("bound", "message"),
    [("x", "--max-sum: Σ|λ| is 'x'"), (".5", "--max-sum .5: no point of med:1:2:1 has so small")],
)
def test_bounds_that_are_refused(bound: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse("med:1:2:1", bound=bound)
    assert message in str(error.value)


@given(st.integers(-30, 30), st.sampled_from(["1/3", ".1", ".05", "1/7", "2"]))
def test_texts_come_back(place: int, step: str) -> None:
    axis = Axis(MED, -30, 30, Fraction(step))
    assert axis.term(place).exact == Fraction(step) * place
    assert axis.text(place) == exact_text(Fraction(step) * place)


def test_pictures_call_a_path_by_its_stem() -> None:
    files = Sources(exists=lambda _: True)
    space = parse_space(["a/med.safetensors:-1:1:1", "a/fin/:-1:1:1", "b/leg:.5"], files)
    names = short_names(space)
    assert list(names.values()) == ["med", "fin", "leg"]
    shown = renamed(space, names)
    assert shown.name(shown.points[0]) == "med:-1 fin:-1 leg:.5"
    assert shown.points == space.points
    assert space.names == ("a/med.safetensors", "a/fin/")


def test_a_stem_that_two_have_is_no_name() -> None:
    files = Sources(exists=lambda _: True)
    space = parse_space(["a/med:-1:1:1", "b/med:-1:1:1", "c/fin:.5"], files)
    assert list(short_names(space).values()) == ["a/med", "b/med", "fin"]
