"""Configs against mergekit's formulas, spelled out here in doubles and numpy.

bench/mergekit_check.py runs mergekit itself.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avops.errors import RecipeError
from avops.recipe import Recipe
from avops.recipe.mergekit import parse_mergekit, to_mergekit

LAYERS = 4
PARTS = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in PARTS),
    "model.norm.weight",
    "lm_head.weight",
]

numbers = st.integers(-40, 40).map(lambda n: n / 20)
scalars = st.one_of(numbers, st.lists(numbers, min_size=1, max_size=6))
filters = st.sampled_from([None, "*", "mlp", "layers.1.", ".weight", "norm", "nowhere", "q_proj"])
conditions = st.builds(lambda f, v: {"filter": f, "value": v}, filters, scalars)
weights = st.one_of(scalars, conditions, st.lists(conditions, min_size=1, max_size=4))


def setting(value: Any, name: str, t: float) -> Any:
    """A setting on one tensor: the first filter that is a part of the name, then the gradient."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return value
    if isinstance(value[0], dict):
        for one in value:
            if one["filter"] in (None, "*") or one["filter"] in name:
                return setting(one["value"], name, t)
        return None
    place = t * (len(value) - 1)
    low = int(place)
    high = min(low + 1, len(value) - 1)
    return (1 - (place - low)) * value[low] + (place - low) * value[high]


def first(name: str, t: float, *values: Any) -> Any:
    return next(
        (found for v in values if v is not None and (found := setting(v, name, t)) is not None),
        None,
    )


def coefficients(config: dict[str, Any], name: str) -> dict[str, float]:
    """What each model's weights are multiplied with (linear), or its difference is."""
    words = name.split(".")
    t = int(words[2]) / (LAYERS - 1) if words[1] == "layers" else 0.0
    top = config["parameters"]
    found = {}
    for entry in config["models"]:
        found[entry["model"]] = first(name, t, entry["parameters"].get("weight"), top["weight"])
    total = sum(found.values())
    linear = config["merge_method"] == "linear"
    if top.get("normalize", linear):
        guarded = not linear and abs(total) < 1e-8
        found = {model: weight / (1 if guarded else total) for model, weight in found.items()}
    scale = None if linear else first(name, t, top.get("lambda"))
    return {model: weight * (1 if scale is None else scale) for model, weight in found.items()}


def ours(recipe: Recipe, name: str) -> dict[str, float]:
    return {term.name: term.lam_of(name) for term in recipe.terms}


def check(config: dict[str, Any]) -> bool:
    """Compare a config's coefficients; False when its sum is refused as rounding noise."""
    try:
        recipe = parse_mergekit(json.dumps(config), file="c.yml").recipe(NAMES)
    except RecipeError as error:
        if "so the result is rounding noise" not in str(error):
            raise
        return False
    for name in NAMES:
        theirs = coefficients(config, name)
        if config["merge_method"] == "linear":
            rest = sum(theirs.values()) - 1
            del theirs["m0"]
            theirs["m0 itself"] = rest
        for model, lam in ours(recipe, name).items():
            # One rounding to float32, at most 2^-24 relative, and doubles' errors of 2^-53 on
            # sums up to 10 that may cancel: 1e-14 on the sum, as much times 50 when divided.
            assert abs(lam - theirs[model]) <= 2**-23 * abs(theirs[model]) + 1e-10, (name, model)
        missing = set(theirs) - set(ours(recipe, name))
        assert all(abs(theirs[model]) < 1e-10 for model in missing)
    return True


@settings(max_examples=150, deadline=None)
@given(
    st.lists(weights, min_size=1, max_size=4), weights, st.one_of(st.none(), weights), st.booleans()
)
def test_task_arithmetic(own: list[Any], above: Any, scale: Any, normalize: bool) -> None:
    models = [{"model": f"m{i}", "parameters": {"weight": value}} for i, value in enumerate(own)]
    top = {"weight": [above, {"filter": None, "value": 0.5}] if isinstance(above, dict) else above}
    if isinstance(above, list) and isinstance(above[0], dict):
        top = {"weight": [*above, {"filter": None, "value": 0.25}]}
    if scale is not None:
        top["lambda"] = scale
    if normalize:
        top["normalize"] = True
    check(
        {"merge_method": "task_arithmetic", "base_model": "b", "models": models, "parameters": top}
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(weights, min_size=1, max_size=4), st.booleans())
def test_linear(own: list[Any], normalize: bool) -> None:
    models = [{"model": f"m{i}", "parameters": {"weight": value}} for i, value in enumerate(own)]
    top = {"weight": 0.75, "normalize": normalize}
    check({"merge_method": "linear", "models": models, "parameters": top})


def tensors() -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    base = rng.standard_normal(997).astype(np.float32)
    return base, [base + rng.standard_normal(997).astype(np.float32) / 5 for _ in range(3)]


def merged(recipe: Recipe, base: np.ndarray, models: dict[str, np.ndarray]) -> np.ndarray:
    """avops's contract in float32."""
    total = np.zeros_like(base)
    for term in recipe.terms:
        delta = models[term.name] - base if term.source.kind == "aligned" else base
        total += np.float32(term.lam_of("w")) * delta
    return base + total


def test_task_arithmetic_gives_the_same_bits() -> None:
    base, models = tensors()
    lams = (-1.0, 0.6, 0.3)
    text = "merge_method: task_arithmetic\nbase_model: b\nmodels:\n" + "".join(
        f"  - {{model: m{i}, parameters: {{weight: {lam}}}}}\n" for i, lam in enumerate(lams)
    )
    recipe = parse_mergekit(text, file="c.yml").recipe(["w"])
    found = merged(recipe, base, {f"m{i}": model for i, model in enumerate(models)})
    deltas = np.stack([model - base for model in models])
    weighted = deltas * np.array(lams, np.float32)[:, None]
    theirs = base + (weighted[0] + weighted[1] + weighted[2])
    assert np.array_equal(found, theirs)


def test_linear_gives_the_same_values() -> None:
    _, models = tensors()
    for normalize, lams in (("true", (2.0, 1.0, 0.5)), ("false", (0.5, 0.3, -0.4))):
        text = "merge_method: linear\nmodels:\n" + "".join(
            f"  - {{model: m{i}, parameters: {{weight: {lam}}}}}\n" for i, lam in enumerate(lams)
        )
        config = parse_mergekit(f"{text}parameters: {{normalize: {normalize}}}", file="c.yml")
        named = {f"m{i}": model for i, model in enumerate(models)}
        found = merged(config.recipe(["w"]), models[0], named)
        theirs = sum(
            lam * model.astype(np.float64) for lam, model in zip(lams, models, strict=True)
        )
        theirs = theirs / (sum(lams) if normalize == "true" else 1)
        # 8 float32 operations on values up to 5 that do not grow: 8 · 5 · 2^-24.
        assert np.max(np.abs(found - theirs)) < 8 * 5 * 2**-24


@settings(max_examples=60, deadline=None)
@given(st.lists(weights, min_size=1, max_size=3))
def test_what_we_write_is_what_we_read(own: list[Any]) -> None:
    models = [{"model": f"m{i}", "parameters": {"weight": value}} for i, value in enumerate(own)]
    config = {
        "merge_method": "task_arithmetic",
        "base_model": "b",
        "models": models,
        "parameters": {"weight": 0.75},
    }
    recipe = parse_mergekit(json.dumps(config), file="c.yml").recipe(NAMES)
    again = parse_mergekit(to_mergekit(recipe, dtype="bf16", names=NAMES), file="again.yml")
    for name in NAMES:
        assert ours(again.recipe(NAMES), name) == ours(recipe, name)
