"""A mergekit config as data: which models, with which parameters, in which dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from avops.errors import RecipeError
from avops.recipe.mergekit.models import Member, ModelRef, Slice, parse_model
from avops.recipe.mergekit.settings import NUMBERS, TRUTHS, Settings, parse_settings, shown
from avops.recipe.mergekit.weights import build_recipe
from avops.recipe.mergekit.yaml_text import load_yaml
from avops.recipe.selection import near_hint
from avops.recipe.terms import Recipe

METHODS = ("task_arithmetic", "linear")
_TOP = (
    *("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"),
    *("modules", "tokenizer_source", "tokenizer", "chat_template", "name"),
)
_DTYPES = ("float32", "bfloat16", "float16")
_SHARED = (*NUMBERS, *TRUTHS)


@dataclass(frozen=True)
class MergekitConfig:
    """A config of mergekit that avops can run, checked.

    base: the model whose tensors come out. given_base: base_model as it was given. compute_dtype
    and out_dtype: mergekit's dtype and out_dtype. notes: what avops does otherwise, or not.
    """

    file: str
    method: str
    base: ModelRef
    given_base: ModelRef | None
    slices: tuple[Slice, ...]
    parameters: Settings = field(default_factory=dict)
    compute_dtype: str | None = None
    out_dtype: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str | None:
        """The dtype of the output, or None for the base's."""
        return self.out_dtype or self.compute_dtype

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The models in the order of the first slice."""
        return self.slices[0].models

    def recipe(self, names: Sequence[str], num_layers: int | None = None) -> Recipe:
        """The recipe for a base with the tensors ``names``.

        num_layers: from the base's config.json; by default as many as the names show. Raises
        RecipeError for a missing weight, weights that sum to 0 where they are divided by their
        sum, and gradients or slices that do not fit the layers.
        """
        return build_recipe(self, names, num_layers)


def parse_mergekit(text: str, *, file: str) -> MergekitConfig:
    """The mergekit config in the YAML ``text``; ``file`` names it in errors.

    Raises RecipeError for what is malformed, unknown, or not supported and changes the result,
    and MissingExtraError without PyYAML.
    """
    return _Reader(file).config(load_yaml(text, file))


class _Reader:
    """Reads the config; collects notes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.notes: list[str] = []

    def config(self, top: Any) -> MergekitConfig:
        if not isinstance(top, dict):
            raise self.wrong("the file", top, "a table with merge_method and models")
        for key in top:
            if key not in _TOP:
                hint = near_hint(str(key), _TOP)
                raise RecipeError(f"{self.file}: unknown key {shown(key)}; {hint}")
        method = top.get("merge_method")
        if method not in METHODS:
            raise self.wrong("merge_method", method, f"one of {' and '.join(METHODS)}")
        given = top.get("base_model")
        base = None if given is None else parse_model(given, f"{self.file}: base_model")
        if base is None and method == "task_arithmetic":
            raise RecipeError(f"{self.file}: base_model is missing; task_arithmetic adds to it")
        parameters = self.settings(top.get("parameters"), "parameters", _SHARED)
        slices = self.with_base(self.slices(top, base), base, from_models=bool(top.get("models")))
        config = MergekitConfig(
            file=self.file,
            method=method,
            base=base or slices[0].models[0],
            given_base=base,
            slices=slices,
            parameters=parameters,
            compute_dtype=self.dtype(top, "dtype"),
            out_dtype=self.dtype(top, "out_dtype"),
        )
        self.check_models(config)
        self.tokenizer(top)
        self.explain(config)
        return replace(config, notes=tuple(dict.fromkeys(self.notes)))

    def slices(self, top: dict[str, Any], base: ModelRef | None) -> tuple[Slice, ...]:
        given = [key for key in ("models", "slices", "modules") if top.get(key)]
        if given == ["modules"]:
            raise RecipeError(f"{self.file}: modules is not supported; list the models in models")
        if len(given) != 1:
            raise RecipeError(
                f"{self.file}: {' and '.join(given) or 'neither models nor slices'} given, "
                "expected one of models and slices"
            )
        if given == ["models"]:
            entries = self.listed(top["models"], "models")
            return (Slice(tuple(self.member(e, f"models[{i}]") for i, e in enumerate(entries))),)
        entries = self.listed(top["slices"], "slices")
        found: list[Slice] = []
        for i, entry in enumerate(entries):
            found.append(self.slice(entry, f"slices[{i}]", base, found[-1].stop if found else 0))
            if found[-1].models != found[0].models:
                raise RecipeError(
                    f"{self.file}: slices[{i}] has other models than slices[0], expected the same "
                    "ones in the same order; give a model weight 0 where it has no part"
                )
        return tuple(found)

    def slice(self, entry: Any, where: str, base: ModelRef | None, first: int | None) -> Slice:
        keys = ("sources", "base_model", "residual_weight", "parameters")
        table = self.table(entry, where, keys)
        if table.get("residual_weight") is not None:
            self.notes.append(f"{where}.residual_weight has no effect, in mergekit neither")
        own = table.get("base_model")
        if own is not None and parse_model(own, f"{self.file}: {where}.base_model") != base:
            raise RecipeError(
                f"{self.file}: {where} has a base_model of its own, expected one base"
            )
        sources = self.listed(table.get("sources"), f"{where}.sources")
        members, ranges = [], []
        for i, source in enumerate(sources):
            place = f"{where}.sources[{i}]"
            members.append(self.member(source, place, "layer_range"))
            ranges.append(source.get("layer_range"))
            if ranges[i] != ranges[0] or not self.is_range(ranges[i], first):
                raise RecipeError(
                    f"{self.file}: {place}.layer_range is {shown(ranges[i])}, expected [{first}, "
                    f"N] as in the slice's other sources: only whole models, layer by layer in "
                    "their order, can be merged"
                )
        settings = self.settings(table.get("parameters"), f"{where}.parameters", _SHARED)
        return Slice(tuple(members), settings, ranges[0][0], ranges[0][1])

    @staticmethod
    def is_range(value: Any, first: int | None) -> bool:
        integers = isinstance(value, list) and [type(end) for end in value] == [int, int]
        return integers and value[0] == first and value[0] < value[1]

    def member(self, entry: Any, where: str, *more: str) -> Member:
        table = self.table(entry, where, ("model", "parameters", *more))
        model = parse_model(table.get("model"), f"{self.file}: {where}.model")
        return Member(
            model, self.settings(table.get("parameters"), f"{where}.parameters", ("weight",))
        )

    def with_base(
        self, slices: tuple[Slice, ...], base: ModelRef | None, *, from_models: bool
    ) -> tuple[Slice, ...]:
        """``slices`` with the base in each: mergekit adds it to ``models``, as the last."""
        if base is None or base in slices[0].models:
            return slices
        if from_models:
            return (replace(slices[0], members=(*slices[0].members, Member(base))),)
        raise RecipeError(
            f"{self.file}: base_model {base} is not in slices[0].sources; mergekit needs it there"
        )

    def check_models(self, config: MergekitConfig) -> None:
        if config.base.adapter:
            raise RecipeError(
                f"{self.file}: the base is {config.base}, a model with an adapter; merge the "
                "adapter first and give the result as base_model"
            )
        for model in config.models:
            if config.models.count(model) > 1:
                raise RecipeError(f"{self.file}: {model} is given twice; add the weights up")
            if model.adapter and model.plain != config.base:
                raise RecipeError(
                    f"{self.file}: {model} is an adapter on {model.path}, expected one on the base "
                    f"{config.base}; merge the adapter first and give the result as a model"
                )
            if model.adapter:
                self.notes.append(
                    f"{model}: the adapter is added exactly; mergekit rounds the merged model first"
                )

    def tokenizer(self, top: dict[str, Any]) -> None:
        source = top.get("tokenizer_source")
        table = top.get("tokenizer")
        if source is not None and table is not None:
            raise RecipeError(f"{self.file}: tokenizer_source and tokenizer given, expected one")
        if table is not None:
            given = self.table(table, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
            for key in ("tokens", "pad_to_multiple_of"):
                if given.get(key):
                    raise RecipeError(f"{self.file}: tokenizer.{key} is not supported")
            source = given.get("source", "union")
        if source not in (None, "base"):
            raise RecipeError(
                f"{self.file}: the tokenizer's source is {shown(source)}, expected base: avops "
                "keeps the base's tokenizer and does not move rows of embeddings"
            )
        if source == "base":
            self.notes.append(
                "the base's tokenizer and rows are kept; mergekit drops rows without a token"
            )
        if top.get("chat_template") is not None:
            self.notes.append("chat_template is not applied; the base's chat template is kept")

    def explain(self, config: MergekitConfig) -> None:
        if config.method == "task_arithmetic":
            for part in config.slices:
                if any(m.parameters and m.model == config.base for m in part.members):
                    self.notes.append("the weight of base_model has no effect in task_arithmetic")
        elif "lambda" in config.parameters or any("lambda" in s.parameters for s in config.slices):
            self.notes.append("lambda has no effect in linear, in mergekit neither")
        dtype = config.compute_dtype
        if config.method == "linear" and dtype not in (None, "float32"):
            self.notes.append(f"mergekit rounds the models to {dtype} first; avops only the result")
        elif config.method == "task_arithmetic" and dtype != "float32":
            self.notes.append(
                f"mergekit computes in {dtype or 'the dtype of the models'}; avops computes in "
                "float32 and rounds once"
            )

    def dtype(self, top: dict[str, Any], key: str) -> str | None:
        value = top.get(key)
        if value is None or value == "":
            return None
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name not in _DTYPES:
            raise self.wrong(key, value, f"one of {', '.join(_DTYPES)}")
        return str(name)

    def settings(self, value: Any, where: str, allowed: tuple[str, ...]) -> Settings:
        settings, notes = parse_settings(value, f"{self.file}: {where}", allowed)
        self.notes.extend(note.removeprefix(f"{self.file}: ") for note in notes)
        return settings

    def table(self, value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, value, f"a table with {' and '.join(keys[:2])}")
        for key in value:
            if key not in keys:
                hint = near_hint(str(key), keys)
                raise RecipeError(f"{self.file}: {where}: unknown key {shown(key)}; {hint}")
        return value

    def listed(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.wrong(where, value, "a list of one or more entries")
        return value

    def wrong(self, where: str, value: Any, expected: str) -> RecipeError:
        return RecipeError(f"{self.file}: {where} is {shown(value)}, expected {expected}")
