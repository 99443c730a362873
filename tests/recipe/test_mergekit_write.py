"""Our recipes as mergekit's configs."""

from __future__ import annotations

import pytest
import yaml

from avops.errors import RecipeError
from avops.recipe import Recipe, Source, Term, parse_where
from avops.recipe.coefficient import parse_exact, round_f32
from avops.recipe.mergekit import parse_mergekit, to_mergekit

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(12) for part in ("self_attn.q", "mlp.up")),
    "model.norm.weight",
    "model.norm.weight_scale",
    "lm_head.weight",
]


def term(name: str, text: str, *rules: str, kind: str = "auto", path: str = "") -> Term:
    lam = round_f32(parse_exact(text, name))
    source = Source(name, path or f"avs/{name}", kind)
    return Term(source, lam, text, tuple(parse_where(rule)[1] for rule in rules))


def again(recipe: Recipe, names: list[str] | None = None) -> Recipe:
    """The recipe, written and read."""
    text = to_mergekit(recipe, dtype="bf16", names=names)
    return parse_mergekit(text, file="again.yml").recipe(NAMES)


def same(recipe: Recipe, other: Recipe) -> bool:
    assert [t.source.path for t in recipe.terms] == [t.source.path for t in other.terms]
    return recipe.base == other.base and all(
        one.lam_of(name) == two.lam_of(name)
        for one, two in zip(recipe.terms, other.terms, strict=True)
        for name in NAMES
    )


def test_a_whole_config() -> None:
    recipe = Recipe("base", (term("med", "-.50"), term("fin", "1", "*mlp*=.3", "*layers.3.*=0")))
    text = to_mergekit(recipe, dtype="F16")
    assert (
        text
        == """\
merge_method: task_arithmetic
base_model: "base"
models:
  - model: "avs/med"
    parameters:
      weight: -0.5
  - model: "avs/fin"
    parameters:
      weight:
        - filter: "layers.3."
          value: 0
        - filter: "mlp"
          value: 0.3
        - filter: "*"
          value: 1
parameters:
  normalize: false
dtype: float32
out_dtype: float16
"""
    )
    assert parse_mergekit(text, file="f").dtype == "float16"
    assert parse_mergekit(text, file="f").notes == ()
    assert same(again(recipe), recipe)


@pytest.mark.parametrize(
    "rules",
    [
        ["*=0.5"],
        ["*mlp*=2", "*=0.5"],
        ["**=0.5", "*.q*=0"],
        ["model.layers.0-5.*=0.5"],
        ["model.layers.1.*=0.5", "*mlp*=0"],
        ["model.layers.1.mlp.up.weight=0.5", "lm_head.weight=0"],
        ["model.norm.weight=0.5"],
        ["model.norm.weight_scale=0.5"],
        ["model.norm.weight=0.5", "model.norm.weight_scale=3"],
        ["model.layers.*=0", "*.1-3.*=0.25"],
        ["*nothing?*=3"],
        ["*.0-3.*=2", "*[mn]orm*=.1"],
    ],
)
def test_rules_come_back(rules: list[str]) -> None:
    recipe = Recipe("base", (term("med", "0.7", *rules), term("fin", "-1")))
    assert same(again(recipe, NAMES), recipe)


def test_rules_of_other_forms_need_names() -> None:
    recipe = Recipe("base", (term("med", "1", "*mlp*=0", "model.layers.0-3.*=0"),))
    with pytest.raises(RecipeError, match="med: mergekit's filters are parts .*'model.layers.0-3"):
        to_mergekit(recipe, dtype="bf16")


def test_layers_are_written_as_layers() -> None:
    recipe = Recipe("base", (term("med", "1", "model.layers.3.*=0"),))
    text = to_mergekit(recipe, dtype="bf16", names=NAMES)
    weights = yaml.safe_load(text)["models"][0]["parameters"]["weight"]
    assert weights == [{"filter": "model.layers.3.", "value": 0}, {"filter": "*", "value": 1}]


@pytest.mark.parametrize(
    "path",
    [
        "a b",
        "ä😀",
        'q"uo\\te',
        "a\x7f\x85\ufeff\u2028b",
        "C:\\x",
        "- x",
        "{y}",
        "a: b",
        "null",
        "1",
    ],
)
def test_odd_paths_come_back(path: str) -> None:
    recipe = Recipe(path, (term("med", "1", path=path + "2"),))
    assert same(again(recipe), recipe)


def test_a_path_with_a_plus_is_no_adapter() -> None:
    recipe = Recipe("b+1", (term("med", "1", path="a+b"),))
    assert same(again(recipe), recipe)


def test_adapters() -> None:
    recipe = Recipe("base", (term("med", "0.5", kind="adapter", path="lora+x"),))
    assert same(again(recipe), recipe)
    assert again(recipe).terms[0].source.kind == "adapter"


def test_ratios_and_long_decimals() -> None:
    third, long = term("a", "1/3"), term("b", "0." + "3" * 40)
    recipe = Recipe("base", (third, long, term("c", "1e-30")))
    assert same(again(recipe), recipe)


def test_what_would_be_rounded_twice() -> None:
    # Just above the tie between two float32: the double nearest to it is the tie.
    exact = f"{1 + 2**-24:.24f}" + "0" * 20 + "1"
    with pytest.raises(
        RecipeError, match="med: λ is 1.00000005.* another float32 through a double"
    ):
        to_mergekit(Recipe("base", (term("med", exact),)), dtype="bf16")


def test_refuses() -> None:
    with pytest.raises(RecipeError, match="med, fin: a delta file, which mergekit cannot read"):
        recipe = Recipe("b", (term("med", "1", kind="delta"), term("fin", "1", kind="delta")))
        to_mergekit(recipe, dtype="bf16")
    with pytest.raises(RecipeError, match="the recipe has no terms"):
        to_mergekit(Recipe("b"), dtype="bf16")
    with pytest.raises(ValueError, match="expected bf16, f16 or f32"):
        to_mergekit(Recipe("b", (term("med", "1"),)), dtype="int8")
