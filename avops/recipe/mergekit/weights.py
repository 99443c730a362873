"""What a mergekit config means for each tensor of the base, as a recipe.

task_arithmetic: base + lambda · Σ w_k (θ_k − base), with normalize divided by Σ w_k.
linear:          Σ w_k θ_k, with normalize (the default) divided by Σ w_k; written as
                 base + Σ λ_k (θ_k − base) + (Σ λ_k − 1) · base.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from avops.errors import RecipeError
from avops.recipe.coefficient import exact_text, round_f32, round_lam
from avops.recipe.mergekit.models import Member, ModelRef, Slice
from avops.recipe.mergekit.settings import resolve
from avops.recipe.selection import Rule, literal
from avops.recipe.terms import Recipe, Source, Term

if TYPE_CHECKING:
    from avops.recipe.mergekit.config import MergekitConfig

LAYER = re.compile(r"(?P<stack>(?:.*?\.)?)(?P<index>0|[1-9][0-9]{0,5})\.(?=.)")
_GUARD = Fraction(1, 10**8)  # mergekit divides by no sum smaller than this
_ROUNDING = Fraction(1, 1000)  # by how much mergekit's rounded sum of weights may be off
# Tensors before and after the layers; mergekit gives them the first and the last slice.
_BEFORE = ("model.embed_tokens.weight",)
_AFTER = ("model.norm.weight", "lm_head.weight")


def build_recipe(
    config: MergekitConfig, names: Sequence[str], num_layers: int | None = None
) -> Recipe:
    """The recipe of ``config`` for a base with the tensors ``names``."""
    tensors = _Tensors(config, names, num_layers)
    others = [model for model in config.models if model != config.base]
    values: dict[ModelRef, dict[str, Fraction]] = {model: {} for model in others}
    rest: dict[str, Fraction] = {}
    for name in names:
        lams = tensors.lams(name)
        for model in others:
            values[model][name] = lams[model]
        if config.method == "linear":
            rest[name] = sum(lams.values(), Fraction(0)) - 1
    terms = [_term(_source(model), values[model], config.file) for model in others]
    if any(rest.values()):
        source = Source(f"{config.base} itself", config.base.path, "delta")
        terms.append(_term(source, rest, config.file))
    return Recipe(config.base.path, tuple(terms))


class _Tensors:
    """The coefficients of each tensor."""

    def __init__(
        self, config: MergekitConfig, names: Sequence[str], num_layers: int | None
    ) -> None:
        self._config = config
        self._stacks = _stacks(names)
        self._layers = num_layers
        sliced = config.slices[0].stop is not None
        if sliced or self._varies():
            self._layers = self._one_stack(num_layers)
        if sliced and config.slices[-1].stop != self._layers:
            raise RecipeError(
                f"{config.file}: the slices end at layer {config.slices[-1].stop}, but "
                f"{config.base} has {self._layers} layers; only whole models can be merged"
            )

    def lams(self, name: str) -> dict[ModelRef, Fraction]:
        """The exact coefficient of each model on the tensor ``name``."""
        layer = LAYER.match(name)
        slices = self._config.slices
        if layer:
            index = int(layer["index"])
            for part in slices:
                stop = self._layers if part.stop is None else part.stop
                if stop is None or index < stop:
                    return self._in_slice(part, name, _t(index, part.first, stop))
            return self._in_slice(slices[-1], name, Fraction(0))
        before = self._in_slice(slices[0], name, Fraction(0))
        after = self._in_slice(slices[-1], name, Fraction(0))
        if before != after and name not in (*_BEFORE, *_AFTER):
            raise RecipeError(
                f"{self._config.file}: {name} is in no layer, and slices[0] gives it other weights "
                "than the last slice; mergekit's tables decide, so give these slices' weights with "
                "filters that leave it the same"
            )
        return after if name in _AFTER else before

    def _in_slice(self, part: Slice, name: str, t: Fraction) -> dict[ModelRef, Fraction]:
        config = self._config
        shared = (part.parameters, config.parameters)
        linear = config.method == "linear"
        weights = {
            member.model: self._weight(part, member, name, t)
            for member in part.members
            if linear or member.model != config.base
        }
        normalize = resolve("normalize", shared, name, t)
        if normalize if normalize is not None else linear:
            divisor = self._divisor(name, list(weights.values()))
            weights = {model: weight / divisor for model, weight in weights.items()}
        factor = None if linear else resolve("lambda", shared, name, t)
        if factor is not None:
            weights = {model: weight * factor for model, weight in weights.items()}
        return weights

    def _weight(self, part: Slice, member: Member, name: str, t: Fraction) -> Fraction:
        config = self._config
        scopes = (member.parameters, part.parameters, config.parameters)
        weight = resolve("weight", scopes, name, t)
        if weight is None:
            raise RecipeError(
                f"{config.file}: {member.model} has no weight for {name}, in mergekit neither; "
                "give parameters.weight, or a last entry without filter"
            )
        return weight

    def _divisor(self, name: str, weights: Sequence[Fraction]) -> Fraction:
        """The sum of the weights as mergekit divides by it."""
        exact = sum(weights, Fraction(0))
        rounded = Fraction(0)
        for weight in weights:
            rounded = Fraction(round_f32(rounded + Fraction(round_f32(weight))))
        guarded = self._config.method == "task_arithmetic"
        if guarded and abs(exact) < _GUARD and abs(rounded) < _GUARD:
            return Fraction(1)
        if exact == 0 or abs(rounded - exact) > _ROUNDING * abs(exact):
            raise RecipeError(
                f"{self._config.file}: normalize divides by the sum of the weights, which is "
                f"{exact_text(exact)} for {name} ({float(rounded):.3g} in float32), so the result "
                "is rounding noise; set normalize: false"
            )
        return exact

    def _varies(self) -> bool:
        config = self._config
        scopes = [config.parameters, *(part.parameters for part in config.slices)]
        scopes += [member.parameters for part in config.slices for member in part.members]
        return any(setting.varies for scope in scopes for setting in scope.values())

    def _one_stack(self, num_layers: int | None) -> int:
        config, stacks = self._config, self._stacks
        if len(stacks) != 1:
            raise RecipeError(
                f"{config.file}: a gradient or slices need one stack of layers, but {config.base} "
                f"has {', '.join(f'{s}*' for s in stacks) or 'none'}; give weights with filters"
            )
        ((stack, count),) = stacks.items()
        if num_layers is not None and num_layers != count:
            raise RecipeError(
                f"{config.file}: a gradient or slices need the number of layers, but {config.base} "
                f"has {count} as {stack}* and its config.json says {num_layers}"
            )
        return count


def _t(index: int, first: int, stop: int | None) -> Fraction:
    """Where the layer is between the first (0) and the last (1) of its slice; 1 if it is alone."""
    if stop is None:  # nothing depends on it
        return Fraction(0)
    return Fraction(index - first, stop - first - 1) if stop - first > 1 else Fraction(1)


def _stacks(names: Sequence[str]) -> dict[str, int]:
    """The number of layers under each prefix such as ``model.layers.``."""
    counts: dict[str, int] = {}
    for name in names:
        if layer := LAYER.match(name):
            counts[layer["stack"]] = max(counts.get(layer["stack"], 0), int(layer["index"]) + 1)
    return counts


def _source(model: ModelRef) -> Source:
    if model.adapter:
        return Source(str(model), model.adapter, "adapter")
    return Source(model.path, model.path, "aligned")


def _term(source: Source, values: Mapping[str, Fraction], file: str) -> Term:
    """The term with these coefficients: the most frequent one, and rules for the others."""
    counts = Counter(value for value in values.values() if value)
    usual = counts.most_common(1)[0][0] if counts else Fraction(0)
    for value in counts:
        round_lam(value, f"{file}: {source.name}")
    text = exact_text(usual)
    lam = round_lam(usual, f"{file}: {source.name}")
    return Term(source, lam, text, _rules(values, usual) if usual else ())


def _rules(values: Mapping[str, Fraction], usual: Fraction) -> tuple[Rule, ...]:
    """Rules for the tensors whose value is not the usual one; whole layers by their number."""
    layers: dict[tuple[str, int], list[str]] = {}
    for name in values:
        if layer := LAYER.match(name):
            layers.setdefault((layer["stack"], int(layer["index"])), []).append(name)
    found: dict[str, Fraction] = {}
    whole: set[str] = set()
    runs: list[tuple[str, int, int, Fraction]] = []
    for (stack, index), inside in sorted(layers.items()):
        value = values[inside[0]]
        if value == usual or literal(stack) != stack or len({values[n] for n in inside}) > 1:
            continue
        whole.update(inside)
        if runs and runs[-1][0] == stack and runs[-1][2:] == (index - 1, value):
            runs[-1] = (stack, runs[-1][1], index, value)
        else:
            runs.append((stack, index, index, value))
    for stack, first, last, value in runs:
        found[f"{stack}{first}.*" if first == last else f"{stack}{first}-{last}.*"] = value
    for name, value in values.items():
        if value != usual and name not in whole:
            found[literal(name)] = value
    return tuple(
        Rule(pattern, value / usual, exact_text(value / usual)) for pattern, value in found.items()
    )
