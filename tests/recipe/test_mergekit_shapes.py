"""mergekit's configs: linear, slices, and stacks of layers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from avops.errors import RecipeError
from avops.recipe import Recipe, Source
from avops.recipe.coefficient import round_f32
from avops.recipe.mergekit import MergekitConfig, parse_mergekit

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{p}.weight" for i in range(5) for p in ("self_attn.q", "mlp.up", "norm")),
    "model.norm.weight",
    "lm_head.weight",
]
HEAD = "merge_method: task_arithmetic\nbase_model: base\n"


def config(text: str) -> MergekitConfig:
    return parse_mergekit(text, file="c.yml")


def lams(text: str, name: str = "med", names: list[str] = NAMES) -> dict[str, Fraction]:
    """The exact coefficient of a model on every tensor."""
    recipe = config(text).recipe(names)
    (term,) = (term for term in recipe.terms if term.name == name)
    found = {}
    for tensor in names:
        matching = [rule for rule in term.rules if rule.matches(tensor)]
        assert len(matching) <= 1
        found[tensor] = term.exact * (matching[0].factor if matching else 1)
        assert term.lam_of(tensor) == round_f32(found[tensor])
    return found


def weight(value: str, more: str = "") -> str:
    return f"{HEAD}models: [{{model: med, parameters: {{weight: {value}}}}}]\n{more}"


def linear(more: str, *weights: str) -> Recipe:
    models = "".join(
        f"  - {{model: m{i}, parameters: {{weight: {w}}}}}\n" for i, w in enumerate(weights)
    )
    return config(f"merge_method: linear\nmodels:\n{models}{more}").recipe(NAMES)


def test_linear_is_the_first_model_and_differences() -> None:
    recipe = linear("", "1", "2", "[0, 1]")
    assert recipe.base == "m0"
    one, two = recipe.terms
    last = "model.layers.4.mlp.up.weight"
    assert (one.lam_of("lm_head.weight"), two.lam_of("lm_head.weight")) == (
        round_f32(Fraction(2, 3)),
        0,
    )
    assert (one.lam_of(last), two.lam_of(last)) == (0.5, 0.25)


def test_linear_without_normalize_scales_the_base_too() -> None:
    recipe = linear("parameters: {normalize: false}", "0.5", "[0.5, 1.5]", "0.25")
    one, two, rest = recipe.terms
    assert (rest.source, rest.name) == (Source("m0 itself", "m0", "delta"), "m0 itself")
    assert [one.lam_of("lm_head.weight"), two.lam_of("lm_head.weight")] == [0.5, 0.25]
    assert rest.lam_of("lm_head.weight") == 0.25
    assert rest.lam_of("model.layers.4.norm.weight") == 1.25
    assert len(linear("parameters: {normalize: false}", "0.5", "0.25", "0.25").terms) == 2


def test_linear_takes_its_base_by_name() -> None:
    recipe = linear("base_model: m1", "1", "1")
    assert (recipe.base, [term.name for term in recipe.terms]) == ("m1", ["m0"])
    added = linear("base_model: m9\nparameters: {weight: 2}", "1", "1")
    assert (added.base, [term.lam for term in added.terms]) == ("m9", [0.25, 0.25])
    with pytest.raises(
        RecipeError, match="m9 has no weight for model.embed_tokens.weight, in merg"
    ):
        linear("base_model: m9", "1", "1")


def test_linear_weights_that_sum_to_zero() -> None:
    with pytest.raises(RecipeError, match="the sum of the weights, which is 0 for"):
        linear("", "1", "-1")


SLICES = """
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {{model: base, layer_range: [0, 2]}}
      - {{model: med, layer_range: [0, 2], parameters: {{weight: {first}}}}}
    parameters: {{weight: 9, lambda: 2}}
  - sources:
      - {{model: base, layer_range: [2, {stop}]}}
      - {{model: med, layer_range: [2, {stop}]}}
    parameters: {{weight: {second}}}
parameters: {{weight: 8}}
"""


def test_slices_have_gradients_of_their_own() -> None:
    found = lams(SLICES.format(first="[0, 1]", second="[1, 0]", stop=5))
    per_layer = [found[f"model.layers.{i}.norm.weight"] for i in range(5)]
    assert per_layer == [0, 2, 1, Fraction(1, 2), 0]
    assert found["model.embed_tokens.weight"] == 0  # of the first slice
    assert found["model.norm.weight"] == found["lm_head.weight"] == 1  # of the last


def test_slices_that_leave_open_what_is_outside_of_layers() -> None:
    text = SLICES.format(first="1", second="1", stop=5)
    with pytest.raises(
        RecipeError, match="odd.weight is in no layer, and slices.0. gives it other"
    ):
        config(text).recipe([*NAMES, "odd.weight"])


def test_slices_must_be_the_whole_model() -> None:
    with pytest.raises(RecipeError, match="the slices end at layer 4, but base has 5 layers"):
        config(SLICES.format(first="1", second="1", stop=4)).recipe(NAMES)


def test_gradients_need_one_stack_of_layers() -> None:
    names = [*NAMES, "vision.blocks.0.w"]
    with pytest.raises(
        RecipeError, match=r"has model.layers.\*, vision.blocks.\*; give weights with"
    ):
        config(weight("[0, 1]")).recipe(names)
    with pytest.raises(RecipeError, match="has none; give weights with filters"):
        config(weight("[0, 1]")).recipe(["w"])
    with pytest.raises(RecipeError, match=r"has 5 as model.layers.\* and its config.json says 4"):
        config(weight("[0, 1]")).recipe(NAMES, 4)
    assert config(weight("[2, 2]")).recipe(names, 4).terms[0].lam == 2
