"""mergekit's configs: everything that is refused, and how it is said."""

from __future__ import annotations

import time

import pytest

from avops.errors import RecipeError
from avops.recipe.mergekit import parse_mergekit

HEAD = "merge_method: task_arithmetic\nbase_model: base\n"
ONE = "models: [{model: med, parameters: {weight: 0.5}}]\n"


def model(text: str) -> str:
    return f"{HEAD}models: [{text}]"


def weight(text: str) -> str:
    return model(f"{{model: med, parameters: {{weight: {text}}}}}")


def sliced(*sources: str, more: str = "") -> str:
    entries = "".join(f"  - {{sources: [{source}]{more}}}\n" for source in sources)
    return f"{HEAD}slices:\n{entries}"


def source(name: str, layers: str) -> str:
    return f"{{model: {name}, layer_range: {layers}, parameters: {{weight: 1}}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is None, expected a table with merge_method and models"),
        ("[]", r"the file is \[\], expected a table"),
        ("a: [", "not valid YAML: .* line 1"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML: could not determine a constr"),
        ("--- 1\n--- 2", "not valid YAML: expected a single document"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
        ("[1]: 2", "line 1: a key is not a text"),
        ("a: &x {b: 1}\nc: {<<: *x}", r"line 2: merge keys \(<<\) are not read"),
        ("a: &x [*x]", "line 1: an alias contains itself"),
        ("a: " + "[" * 5000, "not valid YAML: nested too deeply"),
        ("#" * (1 << 20) + "\n", "1048577 bytes of YAML, expected at most 1048576"),
        ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        (HEAD + ONE + "dtyp: x", "unknown key 'dtyp'; did you mean dtype"),
        (ONE, "merge_method is None, expected one of task_arithmetic and linear"),
        (HEAD.replace("task_arithmetic", "ties") + ONE, "merge_method is 'ties', expected one of"),
        ("merge_method: task_arithmetic\n" + ONE, "base_model is missing; task_arithmetic adds to"),
        (HEAD, "neither models nor slices given, expected one"),
        (HEAD + ONE + "slices: [{}]", "models and slices given, expected one"),
        (HEAD + "modules: {default: {}}", "modules is not supported; list the models in models"),
        (HEAD + "models: {a: 1}", r"models is {'a': 1}, expected a list of one or more entries"),
        (model("med"), r"models\[0\] is 'med', expected a table with model and parameters"),
        (model("{modl: med}"), r"models\[0\]: unknown key 'modl'; did you mean model"),
        (model("{model: 3}"), r"models\[0\].model is 3, expected the path of a model"),
        (model("{model: ''}"), r"models\[0\].model is '', expected the path"),
        (
            model("{model: a+b+c}"),
            r"models\[0\].model is 'a\+b\+c', expected PATH or PATH\+ADAPTER",
        ),
        (model("{model: a+}"), "expected PATH or PATH"),
        (model("{model: a@b@c}"), "is 'a@b@c', expected PATH or PATH@REVISION"),
        (
            model("{model: {model: a, override_architecture: X}}"),
            "'override_architecture' is not sup",
        ),
        (model("{model: {model: {path: 3}}}"), r"models\[0\].model.model is {'path': 3}, expected"),
        (
            model("{model: other+lora}"),
            r"other\+lora is an adapter on other, expected one on the base base",
        ),
        (model("{model: a}, {model: a}"), "a is given twice; add the weights up"),
        (
            ONE + HEAD.replace("base_model: base", "base_model: b+lora"),
            r"the base is b\+lora, a model with",
        ),
        (
            model("{model: a, parameters: 3}"),
            r"models\[0\].parameters is 3, expected a table of param",
        ),
        (
            model("{model: a, parameters: {wieght: 3}}"),
            "unknown parameter 'wieght'; did you mean weight",
        ),
        (HEAD + ONE + "parameters: {t: 0.5}", "c.yml: parameters: unknown parameter 't'"),
        (
            weight("x"),
            r"models\[0\].parameters.weight: the number is 'x', expected a finite decimal",
        ),
        (weight("1/2"), "weight is '1/2', expected a number, or a list of numbers"),
        (weight(".inf"), "weight is inf, expected a number"),
        (weight(".nan"), "weight is nan, expected a number"),
        (weight("0x" + "f" * 5000), "expected a number"),
        (weight("[1, [2]]"), r"weight is \[2\], expected a number"),
        (weight("null"), "weight is None, expected a number"),
        (weight("[{value: 1}, 2]"), r"weight\[1\] is 2, expected filter and value as in the other"),
        (
            weight("{fliter: a, value: 1}"),
            r"weight\[0\]: unknown key 'fliter', expected filter and",
        ),
        (weight("{filter: a}"), r"weight\[0\]: value is missing, expected filter and value"),
        (
            weight("{filter: 3, value: 1}"),
            r"weight\[0\].filter is 3, expected a part of a tensor's",
        ),
        (weight("{value: {value: 1}}"), r"weight\[0\].value is {'value': 1}, expected a number"),
        (
            HEAD + ONE + "parameters: {normalize: 2}",
            "parameters.normalize is 2, expected true or false",
        ),
        (
            HEAD + ONE + "parameters: {normalize: maybe}",
            "normalize is 'maybe', expected true or false",
        ),
        (
            HEAD + ONE + "dtype: float64",
            "dtype is 'float64', expected one of float32, bfloat16, float16",
        ),
        (HEAD + ONE + "out_dtype: int8", "out_dtype is 'int8', expected one of"),
        (HEAD + ONE + "dtype: 3", "dtype is 3, expected one of"),
        (
            HEAD + ONE + "tokenizer_source: union",
            "the tokenizer's source is 'union', expected base",
        ),
        (HEAD + ONE + "tokenizer: {}", "the tokenizer's source is 'union', expected base"),
        (
            HEAD + ONE + "tokenizer: {source: base, tokens: {a: {}}}",
            "tokenizer.tokens is not supported",
        ),
        (
            HEAD + ONE + "tokenizer: {source: base, pad_to_multiple_of: 8}",
            "pad_to_multiple_of is not",
        ),
        (
            HEAD + ONE + "tokenizer: {sorce: base}",
            "tokenizer: unknown key 'sorce'; did you mean source",
        ),
        (
            HEAD + ONE + "tokenizer: {}\ntokenizer_source: base",
            "tokenizer_source and tokenizer given",
        ),
        (sliced(), "slices given|neither models nor slices"),
        (sliced(source("med", "[0, 2]")), r"base_model base is not in slices\[0\].sources"),
        (sliced(source("base", "[1, 2]")), r"layer_range is \[1, 2\], expected \[0, N\]"),
        (sliced(source("base", "[0, 0]")), r"layer_range is \[0, 0\], expected \[0, N\]"),
        (sliced(source("base", "[0]")), r"layer_range is \[0\], expected"),
        (sliced(source("base", "[0, true]")), r"layer_range is \[0, True\], expected"),
        (sliced("{model: base}"), "layer_range is None, expected"),
        (
            sliced(source("base", "[0, 2]"), source("base", "[3, 4]")),
            r"\[3, 4\], expected \[2, N\]",
        ),
        (
            sliced(source("base", "[0, 2]"), source("base", "[0, 2]")),
            r"\[0, 2\], expected \[2, N\]",
        ),
        (
            sliced(source("base", "[0, 2]") + ", " + source("med", "[0, 3]")),
            r"slices\[0\].sources\[1\].layer_range is \[0, 3\].*only whole models, layer by layer",
        ),
        (
            sliced(source("base", "[0, 2]"), source("med", "[2, 3]")),
            r"slices\[1\] has other models than",
        ),
        (sliced(source("base", "[0, 2]"), more=", base_model: x"), "has a base_model of its own"),
        (sliced(source("base", "[0, 2]"), more=", soruces: 1"), "unknown key 'soruces'"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_mergekit(text, file="c.yml")
    assert str(caught.value).startswith("c.yml: ")


def test_a_weight_is_needed_for_every_tensor() -> None:
    text = weight("{filter: mlp, value: 1}")
    with pytest.raises(
        RecipeError, match="med has no weight for lm_head.weight, in mergekit neither"
    ):
        parse_mergekit(text, file="c.yml").recipe(["a.mlp.b", "lm_head.weight"])


@pytest.mark.parametrize("value", ["1.e+39", "[{filter: z, value: 1.e+39}, {value: 1}]"])
def test_a_weight_that_is_infinite_in_float32(value: str) -> None:
    with pytest.raises(RecipeError, match="c.yml: med: λ is '1000.*not finite in float32"):
        parse_mergekit(weight(value), file="c.yml").recipe(["w", "x", "z"])


def test_aliases_are_bounded() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    start = time.perf_counter()
    with pytest.raises(
        RecipeError, match="more than 100000 values when its aliases are written out"
    ):
        parse_mergekit("\n".join(lines), file="c.yml")
    assert time.perf_counter() - start < 10  # 10^30 values would take for ever


def test_aliases_may_be_used() -> None:
    text = (
        HEAD
        + "models:\n  - {model: a, parameters: &p {weight: 0.5}}\n  - {model: b, parameters: *p}"
    )
    terms = parse_mergekit(text, file="c.yml").recipe(["w"]).terms
    assert [term.lam for term in terms] == [0.5, 0.5]
