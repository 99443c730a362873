"""Several candidates at once, and the paths they are written to."""

from __future__ import annotations

import pytest

from avops.errors import RecipeError
from avops.recipe import (
    Source,
    Sources,
    Term,
    expand_candidates,
    expand_template,
    is_template,
    parse_candidates,
    parse_terms,
)

KNOWN = Sources(
    {name: Source(name, f"avs/{name}.safetensors") for name in ("med", "fin", "leg")},
    lambda path: path.startswith("x/") or path == "a:b/c",
)


def shown(specs: list[str]) -> list[str]:
    return [" ".join(map(str, terms)) for terms in parse_candidates(specs, KNOWN)]


def test_one_value_each_is_one_candidate() -> None:
    assert parse_candidates(["med:-1", "fin:.5"], KNOWN) == (
        parse_terms(["med:-1", "fin:.5"], KNOWN),
    )
    assert parse_candidates([], KNOWN) == ((),)


def test_lists_and_ranges_are_multiplied_the_last_fastest() -> None:
    assert shown(["med:-1,-.5", "leg:2", "fin:0:1:.5"]) == [
        f"med:{med} leg:2 fin:{fin}" for med in ("-1", "-.5") for fin in ("0", "0.5", "1")
    ]


def test_a_thousand_candidates_are_not_too_many() -> None:
    assert len(parse_candidates(["med:1:1000:1"], KNOWN)) == 1000


def test_paths_with_colons() -> None:
    assert shown(["a:b/c:1,2"]) == ["a:b/c:1", "a:b/c:2"]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["med:1,"], "--av med:1,: λ is '', expected a finite decimal"),
        (["med:1,x"], "λ is 'x'"),
        (["med:0,1,0.0"], "--av med:0,1,0.0: 0.0 and 0 are the same λ in float32"),
        (["med:0.1,0.100000001"], "are the same λ"),
        (["med:1", "med:0,1"], "already given as med:1"),
        (["mde:1,2"], "did you mean med"),
        (["med"], "no λ"),
        (["med:0:1:.01", "fin:0:1:.1"], "1111 candidates, expected at most 1000"),
        (["med:0:1:1e-9"], "at most 10000"),
    ],
)
def test_refuses(specs: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_candidates(specs, KNOWN)


def test_templates_name_the_values() -> None:
    terms = parse_terms(["med:-.50", "x/fin.v2.safetensors:+2.", "x/leg/:1e-3"], KNOWN)
    assert expand_template("out/{med}_{fin.v2}_{leg}", terms) == "out/-0.5_2_0.001"
    assert expand_template("out/{{{med}}}", terms) == "out/{-0.5}"
    assert expand_template("plain", terms) == "plain"
    assert expand_template("{x/fin.v2.safetensors}", terms) == "2"
    assert expand_template("{med}", parse_terms(["med:-0"], KNOWN)) == "0"


def test_is_template() -> None:
    assert is_template("out/{med}")
    assert not is_template("out/{{med}}")
    assert not is_template("out")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("out/{mde}", "output 'out/{mde}': no term is called 'mde'; did you mean med"),
        ("out/{zzz}", "known names: .*med"),
        ("out/{med", "braces do not pair; write {{ and }} for braces"),
        ("out/}", "braces do not pair"),
        ("out/{}", "expected only the name of a term between braces"),
        ("out/{med:>3}", "expected only the name"),
        ("out/{med!r}", "expected only the name"),
    ],
)
def test_templates_refuse(template: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        expand_template(template, parse_terms(["med:1", "fin:2"], KNOWN))


def test_stems_that_are_not_unique_are_no_names() -> None:
    terms = parse_terms(["x/a/fin:1", "x/b/fin:2"], KNOWN)
    with pytest.raises(RecipeError, match="no term is called 'fin'"):
        expand_template("{fin}", terms)
    named = (Term(Source("fin", "p"), 3.0, "3"), *parse_terms(["x/a/fin:1"], KNOWN))
    assert expand_template("{fin}", named) == "3"  # a name wins over a stem


def test_no_file_is_named_after_a_ratio() -> None:
    with pytest.raises(RecipeError, match="λ of med is 1/3, expected a decimal number"):
        expand_template("{med}", [Term(Source("med", "p"), 0.25, "1/3")])


def test_paths_of_candidates() -> None:
    found = parse_candidates(["med:-1,-.5", "fin:1", "x/leg:0,1"], KNOWN)
    assert expand_candidates("out/{med}_{leg}", found) == (
        "out/-1_0",
        "out/-1_1",
        "out/-0.5_0",
        "out/-0.5_1",
    )
    assert expand_candidates("out", parse_candidates(["med:1"], KNOWN)) == ("out",)


@pytest.mark.parametrize(
    ("specs", "template", "message"),
    [
        (["med:0,1", "fin:0,1"], "out/{fin}", r"4 candidates need 4 paths, and \{med\} is not in"),
        (["med:0,1", "x/leg:0,1"], "out", r"\{med\}, \{leg\} is not in the template"),
        (["med:0,1"], "out/{fin}", r"\{med\} is not in the template"),
        (
            ["med:0,5"],
            "out.safetensors",
            r"'out-\{med\}\.safetensors' \(a comma .* a point",
        ),
        (["med:0,1"], "out/", r"such as 'out-\{med\}' "),
        (["med:1,11", "fin:11,1"], "out/{med}{fin}", "med:1 fin:11 and .* both give 'out/111'"),
        (["med:0,1"], "out/{med}/../x", "both give 'out/1/../x'"),
    ],
)
def test_paths_of_candidates_differ(specs: list[str], template: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        expand_candidates(template, parse_candidates(specs, KNOWN))
