"""Terms: names, paths and coefficients from texts."""

from __future__ import annotations

import pytest

from avops.errors import RecipeError
from avops.recipe import Recipe, Source, Sources, parse_sweep, parse_terms

KNOWN = Sources(
    {name: Source(name, f"avs/{name}.safetensors") for name in ("med", "fin", "leg")},
    lambda path: path == "dir/aligned",
)


def test_names_and_paths() -> None:
    med, aligned = parse_terms(["med:-1", "dir/aligned:-0.4"], KNOWN)
    assert (med.name, med.source.path, med.lam, med.text) == (
        "med",
        "avs/med.safetensors",
        -1,
        "-1",
    )
    assert (aligned.source.path, str(aligned)) == ("dir/aligned", "dir/aligned:-0.4")


def test_a_name_wins_over_a_path() -> None:
    sources = Sources({"med": Source("med", "avs/med")}, lambda _: True)
    assert parse_terms(["med:1"], sources)[0].source.path == "avs/med"


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(RecipeError, match=r"--av mde: no alignment vector .* did you mean med\?"):
        parse_terms(["mde:1"], KNOWN)
    with pytest.raises(RecipeError, match="known names: med, fin, leg"):
        parse_terms(["zzzzz:1"], KNOWN)
    with pytest.raises(RecipeError, match=r"known names: none: there is no \[av\] table"):
        parse_terms(["med:1"], Sources())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("med", r"no λ, expected NAME:λ .* put the base before --av\)$"),
        ("base.safetensors", r"no λ, expected NAME:λ .* put the base before --av\)$"),
        ("a=b", r"no λ, expected NAME:λ .* put the base before --av\)$"),
        ("med=.5", r"no λ, expected NAME:λ such as med:-1 \(did you mean med:\.5\?\)$"),
        ("med:", r"no λ, .* \(without a space on either side of the colon\)$"),
        (":1", r"a λ without a name, .* \(without a space on either side of the colon\)$"),
        ("-1", r"a λ without a name, .* \(without a space on either side of the colon\)$"),
    ],
)
def test_a_term_needs_a_name_and_a_coefficient(spec: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_terms([spec], KNOWN)


def test_a_minus_that_is_no_hyphen_is_named() -> None:
    with pytest.raises(RecipeError, match=r"λ is '−1', .*; '−' is no hyphen, write -1$"):
        parse_terms(["med:−1"], KNOWN)


def test_a_tilde_that_no_shell_replaced() -> None:
    with pytest.raises(RecipeError, match=r"--av ~/med: .*; ~ was not replaced by the shell"):
        parse_terms(["~/med:1"], KNOWN)


def test_range_where_one_lam_is_expected() -> None:
    with pytest.raises(RecipeError, match="ranges belong to `avops sweep`"):
        parse_terms(["med:-1:1:.1"], KNOWN)


def test_the_same_vector_twice() -> None:
    with pytest.raises(RecipeError, match="already given as med:1"):
        parse_terms(["med:1", "med:.5"], KNOWN)


def test_zero_terms_are_not_active() -> None:
    recipe = Recipe("base", parse_terms(["med:0", "fin:-0.0", "leg:.5"], KNOWN))
    assert [term.name for term in recipe.active] == ["leg"]


def test_parse_sweep_keeps_the_order() -> None:
    source, points = parse_sweep(["fin:.5", "med:-1:1:.5", "leg:2"], KNOWN)
    assert source.name == "med"
    assert [" ".join(map(str, terms)) for terms in points] == [
        f"fin:.5 med:{lam} leg:2" for lam in ("-1", "-0.5", "0", "0.5", "1")
    ]


def test_paths_may_hold_colons() -> None:
    sources = Sources({}, lambda path: path == "a:b:c/m.safetensors")
    (term,) = parse_terms(["a:b:c/m.safetensors:0.5"], sources)
    assert (term.source.path, term.text) == ("a:b:c/m.safetensors", "0.5")
    source, points = parse_sweep(["a:b:c/m.safetensors:0:1:.5"], sources)
    assert (source.path, len(points)) == ("a:b:c/m.safetensors", 3)


@pytest.mark.parametrize("specs", [["med:1"], ["med:0:1:.5", "fin:0:1:.5"], []])
def test_a_sweep_has_one_range(specs: list[str]) -> None:
    with pytest.raises(RecipeError, match="expected exactly one term NAME:START:STOP:STEP"):
        parse_sweep(specs, KNOWN)


def test_a_sweep_varies_no_fixed_vector() -> None:
    with pytest.raises(RecipeError, match="already given"):
        parse_sweep(["med:1", "med:0:1:.5"], KNOWN)
