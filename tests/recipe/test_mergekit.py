"""mergekit's configs: what is read, what is refused, and what it means."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest

from avops.errors import MissingExtraError, RecipeError
from avops.recipe import Recipe, Source
from avops.recipe.coefficient import round_f32
from avops.recipe.mergekit import MergekitConfig, ModelRef, parse_mergekit

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{p}.weight" for i in range(5) for p in ("self_attn.q", "mlp.up", "norm")),
    "model.norm.weight",
    "lm_head.weight",
]
HEAD = "merge_method: task_arithmetic\nbase_model: base\n"
ONE = "models: [{model: med, parameters: {weight: 0.5}}]\n"


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


def test_scalars() -> None:
    text = """
merge_method: task_arithmetic
base_model: org/base@main
models:
  - model: med
    parameters: {weight: -1}
  - model: {model: {path: dir/fin, revision: v1}}
    parameters: {weight: "1e-1"}
dtype: float32
out_dtype: bfloat16
name: mine
"""
    found = config(text)
    assert found.dtype == "bfloat16"
    assert found.notes == ()
    assert found.base == ModelRef("org/base@main")
    recipe = found.recipe(NAMES)
    assert recipe.base == "org/base@main"
    assert [(t.source, t.lam, t.text, t.rules) for t in recipe.terms] == [
        (Source("med", "med", "aligned"), -1.0, "-1", ()),
        (Source("dir/fin@v1", "dir/fin@v1", "aligned"), round_f32(Fraction(1, 10)), "0.1", ()),
    ]


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        ("", None),
        ("dtype: float16\n", "float16"),
        ("dtype: torch.bfloat16\n", "bfloat16"),
        ("dtype: float32\nout_dtype: float16\n", "float16"),
    ],
)
def test_output_dtype(lines: str, dtype: str | None) -> None:
    assert config(HEAD + ONE + lines).dtype == dtype


def test_gradients_spread_over_the_layers_and_begin_outside_of_them() -> None:
    found = lams(weight("[0.2, 1, 0]"))
    per_layer = [found[f"model.layers.{i}.mlp.up.weight"] for i in range(5)]
    assert per_layer == [Fraction(n, 10) for n in (2, 6, 10, 5, 0)]
    for outside in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert found[outside] == Fraction(1, 5)  # mergekit gives t = 0 to all of these


def test_a_single_layer_is_at_the_end_of_a_gradient() -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up.weight"]
    assert list(lams(weight("[0, 1]"), names=names).values()) == [0, 1]


def test_the_first_filter_that_matches_counts() -> None:
    values = "{filter: mlp, value: [0, 1]}, {filter: layers.3., value: 7}, {filter: '*', value: 2}"
    found = lams(weight(f"[{values}, {{value: 9}}]"))
    assert found["model.layers.3.mlp.up.weight"] == Fraction(3, 4)
    assert found["model.layers.3.norm.weight"] == 7
    assert found["model.norm.weight"] == 2
    assert found["model.layers.0.mlp.up.weight"] == 0


def test_a_model_goes_before_all_models() -> None:
    text = """
merge_method: task_arithmetic
base_model: base
models:
  - model: med
    parameters: {weight: {filter: mlp, value: 3}}
  - model: fin
parameters:
  weight: [{filter: norm, value: 5}, {value: 7}]
  lambda: [{filter: lm_head, value: 0.5}]
"""
    med, fin = lams(text), lams(text, "fin")
    assert (med["model.layers.0.mlp.up.weight"], fin["model.layers.0.mlp.up.weight"]) == (3, 7)
    assert (med["model.norm.weight"], med["model.embed_tokens.weight"]) == (5, 7)
    assert (med["lm_head.weight"], fin["lm_head.weight"]) == (Fraction(7, 2), Fraction(7, 2))


def test_an_empty_list_is_no_value() -> None:
    assert lams(weight("[]", "parameters: {weight: 2}"))["lm_head.weight"] == 2
    inner = weight("[{filter: norm, value: []}, {value: 1}]", "parameters: {weight: 2}")
    assert lams(inner)["model.norm.weight"] == 2
    assert lams(inner)["lm_head.weight"] == 1


TWO = """
merge_method: {method}
base_model: base
models:
  - model: med
    parameters: {{weight: {med}}}
  - model: fin
    parameters: {{weight: {fin}}}
parameters:
  normalize: {normalize}
  lambda: 3
"""


@pytest.mark.parametrize(
    ("med", "fin", "normalize", "expected"),
    [
        ("1", "2", "false", (3, 6)),
        ("1", "2", "true", (1, 2)),
        ("0.1", "0.2", "true", (1, 2)),
        ("1", "-3", "1", (Fraction(-3, 2), Fraction(9, 2))),
        ("1.5", "-1.5", "true", (Fraction(9, 2), Fraction(-9, 2))),  # the sum 0 divides nothing
        ("1.e-9", "0", "yes", (Fraction(3, 10**9), 0)),
    ],
)
def test_normalize_in_task_arithmetic(
    med: str, fin: str, normalize: str, expected: tuple[Fraction, Fraction]
) -> None:
    text = TWO.format(method="task_arithmetic", med=med, fin=fin, normalize=normalize)
    assert (lams(text)["lm_head.weight"], lams(text, "fin")["lm_head.weight"]) == expected


def test_normalize_can_step_over_the_layers() -> None:
    text = weight("4", "parameters: {normalize: [true, false, true]}")
    per_layer = [lams(text)[f"model.layers.{i}.mlp.up.weight"] for i in range(5)]
    assert per_layer == [1, 1, 4, 4, 1]


def test_sums_that_are_rounding_noise() -> None:
    # In float32 0.3 + 0.6 - 0.9 is 6e-8, so mergekit divides by that.
    text = (
        HEAD
        + "models:\n"
        + "".join(
            f"  - {{model: m{w}, parameters: {{weight: {w}}}}}\n" for w in ("0.3", "0.6", "-0.9")
        )
    )
    with pytest.raises(
        RecipeError, match=r"sum of the weights, which is 0 for model.embed.*5.96e-08"
    ):
        config(text + "parameters: {normalize: true}").recipe(NAMES)
    assert len(config(text).recipe(NAMES).terms) == 3


def test_rules_are_short() -> None:
    (term,) = (
        config(weight("[{filter: .2., value: 2}, {filter: .3., value: 2}, {value: 1}]"))
        .recipe(NAMES)
        .terms
    )
    assert [str(rule) for rule in term.rules] == ["model.layers.2-3.*=2"]
    (term,) = config(weight("[{filter: 0.mlp, value: 2}, {value: 1}]")).recipe(NAMES).terms
    assert [str(rule) for rule in term.rules] == ["model.layers.0.mlp.up.weight=2"]


def test_no_terms_is_the_base() -> None:
    text = HEAD + "models: [{model: base, parameters: {weight: 3}}]"
    assert config(text).recipe(NAMES) == Recipe("base")
    assert config(text).notes[0] == "the weight of base_model has no effect in task_arithmetic"


def test_adapters_on_the_base() -> None:
    found = config(HEAD + "models: [{model: base+lora/x, parameters: {weight: 0.5}}]")
    (term,) = found.recipe(NAMES).terms
    assert term.source == Source("base+lora/x", "lora/x", "adapter")
    assert "the adapter is added exactly" in found.notes[0]
    table = "{model: base, lora: {path: lora/x}}"
    again = config(HEAD + f"models: [{{model: {table}, parameters: {{weight: 0.5}}}}]")
    assert again.recipe(NAMES) == found.recipe(NAMES)


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ("tokenizer_source: base", "the base's tokenizer and rows are kept"),
        ("tokenizer: {source: base}", "the base's tokenizer and rows are kept"),
        ("chat_template: auto", "chat_template is not applied"),
        ("parameters: {int8_mask: true}", "parameters.int8_mask has no effect in this method"),
        ("parameters: {density: 0.5}", "parameters.density has no effect in this method"),
        ("dtype: bfloat16", "mergekit computes in bfloat16; avops computes in float32"),
    ],
)
def test_notes(more: str, note: str) -> None:
    notes = config(HEAD + ONE + more).notes
    assert any(note in text for text in notes)


def test_a_shared_parameter_of_a_model_is_noted() -> None:
    text = HEAD + "models: [{model: med, parameters: {weight: 1, lambda: 2}}]\ndtype: float32"
    assert config(text).notes == (
        "models[0].parameters.lambda has no effect there, in mergekit neither",
    )
    assert lams(text)["lm_head.weight"] == 1
    text = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1, lambda: 2}"
    (note,) = config(text).notes
    assert note == "lambda has no effect in linear, in mergekit neither"
    (_, note) = config(text + "\ndtype: float16").notes
    assert note == "mergekit rounds the models to float16 first; avops only the result"


def test_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"reading c.yml needs .*'PyYAML'.*'avops\[yaml\]'"):
        config(HEAD + ONE)
