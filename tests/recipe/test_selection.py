"""Rules: λ per tensor."""

from __future__ import annotations

import fnmatch
import itertools
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avops.errors import RecipeError
from avops.recipe import Recipe, Rule, Source, Term, apply_rules, parse_skip, parse_where, unmatched
from avops.recipe.coefficient import exact_text, parse_exact, round_f32
from avops.recipe.selection import literal

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(20) for part in ("self_attn.q", "mlp.up")),
    "model.norm.weight",
    "lm_head.weight",
]


def rule(text: str) -> Rule:
    return parse_where(text)[1]


def term(text: str, *rules: str, name: str = "med") -> Term:
    source = Source(name, f"avs/{name}")
    return Term(source, round_f32(parse_exact(text, "x")), text, tuple(map(rule, rules)))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("model.layers.0-15.*", ["model.layers.0.a", "model.layers.15.a.b"], ["model.layers.16.a"]),
        ("0-3", ["0", "3"], ["4", "03", "00", "1.2", ""]),
        ("*.8-112.w", ["a.8.w", "a.99.w", "a.100.w", "a.112.w", "b.3.9.w"], ["a.7.w", "a.113.w"]),
        ("*mlp*", ["a.mlp.b", "mlp"], ["MLP", "ml.p"]),
        ("a.?[0-9].w", ["a.x3.w"], ["a.xy.w", "a.3.w"]),
        ("a.[!b].w", ["a.c.w"], ["a.b.w"]),
        ("a.[0-3.5-6.]", ["a.5", "a.2", "a.."], ["a.4-6"]),  # a bracket holds no range
        ("h.10-10.*", ["h.10.x"], ["h.1.x", "h.100.x"]),
        ("w-1-2.x", ["w-1-2.x"], ["w-1.x"]),
        ("a.0-1b.*", ["a.0-1b.w"], ["a.0b.w", "a.1b.w"]),  # no range: it fills no component
        ("model.norm.weight", ["model.norm.weight"], ["model.norm.weights", "xmodel.norm.weight"]),
        ("x[0].1-2.w", ["x[0].1-2.w", "x0.1.w"], ["x[0].1.w"]),  # equal names match, too
        ("*.0-3.*", ["a.7.b.2.c"], ["a.7.b.9.c"]),
        ("a.\n*", ["a.\nb"], ["a.b"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    one = Rule(pattern, Fraction(1), "1")
    assert [name for name in [*yes, *no] if one.matches(name)] == yes


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_ranges_hold_what_they_say(low: int, more: int) -> None:
    one = Rule(f"l.{low}-{low + more}.w", Fraction(1), "1")
    near = {0, 9, 10, 99, 100, 999, 1000, 9999, low - 1, low, low + 1, low + more, low + more + 1}
    for i in near - {-1}:
        assert one.matches(f"l.{i}.w") == (low <= i <= low + more)
        assert not one.matches(f"l.0{i}.w")


@given(st.text("ab.*?[]!0-", max_size=12), st.text("ab.0-]", max_size=8))
def test_without_ranges_a_pattern_is_fnmatch(pattern: str, name: str) -> None:
    if not re.search(r"(^|\.)[0-9]+-[0-9]+(\.|$)", pattern):
        one = Rule(pattern, Fraction(1), "1")
        assert one.matches(name) == (name == pattern or fnmatch.fnmatchcase(name, pattern))


@given(st.text("ab.*?[]!01-", max_size=12), st.text("ab.*?[]!01-", max_size=12))
def test_literal_matches_one_name(name: str, other: str) -> None:
    assert Rule(literal(name), Fraction(1), "1").matches(name)
    assert Rule(literal(name), Fraction(1), "1").matches(other) == (other in (name, literal(name)))


def test_where() -> None:
    assert parse_where("model.layers.0-15.*=0.5") == (
        None,
        Rule("model.layers.0-15.*", Fraction(1, 2), "0.5"),
    )
    assert parse_where("med:*mlp*=0") == ("med", Rule("*mlp*", Fraction(0), "0"))
    assert parse_where("dir/a:b:*=-1") == ("dir/a:b", Rule("*", Fraction(-1), "-1"))
    assert parse_where("a=b.*=2") == (None, Rule("a=b.*", Fraction(2), "2"))
    assert parse_skip("*norm*") == Rule("*norm*", Fraction(0), "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*mlp*", r"--where \*mlp\*: expected \[AV:\]GLOB=FACTOR such as"),
        ("=0.5", "expected"),
        ("med:=0.5", "expected"),
        (":*=0.5", "expected"),
        ("*=", "the factor is '', expected a finite decimal number"),
        ("*=x", "the factor is 'x', expected a finite decimal number"),
        ("*=1e39", "the factor is '1e39', which is not finite in float32"),
        ("*.5-2.*=1", "the range 5-2 matches nothing, expected N-M with N ≤ M"),
        ("*.0-9999999.*=1", "at most 6 digits"),
        ("\ue000*=1", r"private character U\+E000"),
    ],
)
def test_where_refuses(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_where(text)


def test_skip_refuses_nothing() -> None:
    with pytest.raises(RecipeError, match="--skip: the pattern is empty"):
        parse_skip("")


def test_the_last_rule_that_matches_counts() -> None:
    one = term("0.5", "*=0.5", "model.layers.3.*=0", "*.3.mlp*=3", "model.norm.weight=2", "*up*=-1")
    lams = {name: one.lam_of(name) for name in NAMES}
    assert lams["model.embed_tokens.weight"] == 0.25
    assert lams["model.layers.3.self_attn.q.weight"] == 0
    assert lams["model.layers.3.mlp.up.weight"] == -0.5
    assert lams["model.norm.weight"] == 1
    exact_last = term("1", "*=0.5", "model.norm.weight=2", "*=0.25")
    assert exact_last.lam_of("model.norm.weight") == 0.25
    assert term("1", "lm_head.weight=2", "lm_head.weight=3").lam_of("lm_head.weight") == 3
    assert term("1", "*mlp*=0").lam_of("model.norm.weight") == 1


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_products_are_rounded_once(a: int, b: int) -> None:
    one = term(f"{a}e-9", f"*={b}e-9")
    assert one.lam_of("x") == round_f32(Fraction(a * b, 10**18))


def test_rounding_twice_would_differ() -> None:
    # 0.1 and 0.3 rounded to float32 first give 0.030000001..., one float32 above the nearest.
    assert term("0.1", "*=0.3").lam_of("x") == round_f32(Fraction(3, 100))
    assert round_f32(Fraction(round_f32(Fraction(1, 10))) * Fraction(3, 10)) != round_f32(
        Fraction(3, 100)
    )


def test_an_infinite_product() -> None:
    with pytest.raises(RecipeError, match=r"med: rule \*=1e30: λ is '1000.*not finite in float32"):
        term("1e30", "*=1e30").lam_of("x")


def test_ratios() -> None:
    assert term("1/3").exact == Fraction(1, 3)
    assert term("-2/3", "*=1/2").lam_of("x") == round_f32(Fraction(-1, 3))
    with pytest.raises(RecipeError, match="expected a denominator above 0"):
        parse_exact("1/0", "x")


@given(st.fractions())
def test_exact_texts_give_the_number_back(value: Fraction) -> None:
    assert parse_exact(exact_text(value), "x") == value


def test_exact_texts() -> None:
    texts = ["-0.125", "5", "1/3", "0.007", "-12.5", "100", "0", "0." + "0" * 59 + "1"]
    assert [exact_text(Fraction(text)) for text in texts] == texts


def test_rules_go_to_the_named_terms() -> None:
    terms = (term("1", name="med"), term("1", "*a*=2", name="x/fin.safetensors"))
    given_rules = [parse_where(t) for t in ("*=0.5", "med:*b*=0", "fin:*c*=3")]
    med, fin = apply_rules(terms, given_rules)
    assert [str(rule) for rule in med.rules] == ["*=0.5", "*b*=0"]
    assert [str(rule) for rule in fin.rules] == ["*a*=2", "*=0.5", "*c*=3"]
    assert apply_rules(terms, []) == terms
    with pytest.raises(
        RecipeError, match=r"rule mde:\*=1: no term has this name; did you mean med"
    ):
        apply_rules(terms, [parse_where("mde:*=1")])
    with pytest.raises(RecipeError, match="known names: med, "):
        apply_rules(terms, [parse_where("zzz:*=1")])


def test_unmatched_rules() -> None:
    rules = ("*mlp*=0", "model.layers.20-30.*=1", "lm_head.weight=2", "lm_head.bias=2")
    recipe = Recipe("base", (term("1", *rules), term("1", *rules, "*z*=1", name="fin")))
    assert [str(rule) for rule in unmatched(recipe, NAMES)] == [
        "model.layers.20-30.*=1",
        "lm_head.bias=2",
        "*z*=1",
    ]
    zero = Recipe("base", (term("0", "*z*=1"),))
    assert [str(rule) for rule in unmatched(zero, NAMES)] == ["*z*=1"]


def test_a_zero_factor_leaves_the_term_active() -> None:
    recipe = Recipe("base", (term("1", "*=0"), term("0", "*=5", name="fin")))
    assert [one.name for one in recipe.active] == ["med"]


def test_many_rules_on_many_tensors_are_fast() -> None:
    names = [f"model.layers.{i}.mlp.up.weight" for i in range(1000)]
    exact = [f"{name}=0.{i + 1}" for i, name in enumerate(names)]
    globs = [f"model.layers.{i}.*=0.{i + 1}" for i in range(1000)]
    start = time.perf_counter()
    lams = [[one.lam_of(name) for name in names] for one in (term("1", *exact), term("1", *globs))]
    assert time.perf_counter() - start < 10  # 0.2 s alone; 10 s on a busy machine
    assert lams[0] == lams[1] == [round_f32(Fraction(f"0.{i + 1}")) for i in range(1000)]


def test_adversarial_patterns_do_not_hang() -> None:
    one = Rule("*".join("a" * 40) + "b", Fraction(1), "1")
    start = time.perf_counter()
    assert not one.matches("a" * 5000)
    assert time.perf_counter() - start < 10  # backtracking over every * would take for ever


def test_rules_are_values() -> None:
    assert len({rule("*=0.5"), rule("*=0.5"), rule("*=.5")}) == 2
    pairs = itertools.combinations([term("1", "*=2"), term("1", "*=3"), term("1")], 2)
    assert all(a != b for a, b in pairs)
