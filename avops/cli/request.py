"""What `avops merge` was asked for: recipes and their outputs, from flags or from a config file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from avops.cli import hub, project
from avops.cli.options import dtype_of, read_config, read_recipe
from avops.dtypes import parse_dtype
from avops.errors import OutputError, UserError
from avops.recipe import (
    Recipe,
    Source,
    Term,
    apply_rules,
    expand_candidates,
    parse_candidates,
    parse_skip,
    parse_where,
)
from avops.stream import MergeOptions, default_target

_YAML = (".yml", ".yaml")


@dataclass(frozen=True)
class Request:
    """Recipes with their outputs, and how to merge. notes: what the user should know."""

    wanted: tuple[tuple[Recipe, Path], ...]
    options: MergeOptions
    notes: tuple[str, ...] = ()


def request_of(args: argparse.Namespace) -> Request:
    """The request in ``args``. Raises UserError for what contradicts itself."""
    options = MergeOptions(
        dtype=dtype_of(args),
        force=args.force,
        allow_missing=args.allow_missing,
        allow_extra=args.allow_extra,
        allow_nonfinite=args.allow_nonfinite,
        vocab=args.vocab or "strict",
        rounding=args.rounding or "nearest",
        seed=args.seed or 0,
        resume=args.resume,
    )
    name = args.base or ""
    if name.endswith((*_YAML, ".json")):
        _refuse_with_config(args)
        made = _from_mergekit if name.endswith(_YAML) else _from_recipe
        return made(Path(name), args, options)
    return _from_flags(args, options)


def output_path(text: str) -> Path:
    """The path of an output. Raises UserError for none, and a directory named as a file."""
    path = Path(text)
    if text in ("", "-"):
        raise OutputError(
            f"-o {text!r}: expected a file.safetensors or a directory; no checkpoint goes to stdout"
        )
    if text.endswith("/") and path.suffix == ".safetensors":
        raise OutputError(
            f"-o {text}: a directory named like a file; leave out the '/' for one file, or "
            f"give a directory another name, such as {path.with_suffix('')}/"
        )
    return path


def _from_flags(args: argparse.Namespace, options: MergeOptions) -> Request:
    _check_seed(args, options)
    found = project.load_project()
    if not args.av:
        project.base_of(args.base, found)
        raise UserError(
            "no --av given, expected alignment vectors with λ such as --av med:-1, or a config "
            "file (.yml of mergekit, avops_recipe.json) in place of BASE"
        )
    rules = [parse_where(text) for text in args.where]
    rules += [(None, parse_skip(glob)) for glob in args.skip]
    candidates = parse_candidates(project.terms_of(args.av), project.sources(found))
    candidates = tuple(apply_rules(terms, rules) for terms in candidates)
    # After the terms: a base that was written among them is said there.
    given = project.base_of(args.base, found)
    base = hub.local(given, quiet=args.json)
    outs = _outputs(args.out, base, candidates)
    located = project.located_terms(candidates[0], quiet=args.json)
    paths = [term.source for term in located]
    wanted = tuple(
        (Recipe(base, tuple(map(_with_source, terms, paths))), out)
        for terms, out in zip(candidates, outs, strict=True)
    )
    return Request(wanted, options)


def _with_source(term: Term, source: Source) -> Term:
    return replace(term, source=source)


def _outputs(
    out: str | None, base: str, candidates: tuple[tuple[Term, ...], ...]
) -> tuple[Path, ...]:
    if out is not None:
        return tuple(map(output_path, expand_candidates(out, candidates)))
    if len(candidates) > 1:
        raise OutputError(
            f"{len(candidates)} candidates and no -o, expected a template with the name of each "
            "AV that varies, such as -o 'merged-{med}'"
        )
    return (default_target(base),)


def _refuse_with_config(args: argparse.Namespace) -> None:
    for flag in ("av", "where", "skip"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag} with {args.base}: a config file says what to merge; "
                "give one or the other"
            )


def _check_seed(args: argparse.Namespace, options: MergeOptions) -> None:
    if args.seed is not None and options.rounding != "dither":
        raise UserError("--seed without --rounding dither: only dither has a seed; give both")


def _from_mergekit(path: Path, args: argparse.Namespace, options: MergeOptions) -> Request:
    _check_seed(args, options)
    from avops.disk import open_base
    from avops.recipe.mergekit import parse_mergekit

    config = parse_mergekit(read_config(path), file=str(path))
    local = hub.local(config.base.path, quiet=args.json)
    tensors = open_base(local).tensors.values()
    recipe = config.recipe(tuple(t.name for t in tensors if t.dtype.floating))
    terms = tuple(
        replace(term, source=replace(term.source, path=local))
        if term.source.path == config.base.path
        else project.located_terms([term], quiet=args.json)[0]
        for term in recipe.terms
    )
    if options.dtype is None and config.dtype:
        options = replace(options, dtype=parse_dtype(config.dtype))
    out = output_path(args.out) if args.out else default_target(local)
    return Request(((Recipe(local, terms), out),), options, config.notes)


def _from_recipe(path: Path, args: argparse.Namespace, options: MergeOptions) -> Request:
    found = read_recipe(path)
    base = hub.local(found.recipe.base, quiet=args.json)
    terms = project.located_terms(found.recipe.terms, quiet=args.json)
    recipe = Recipe(base, terms)
    recorded = MergeOptions.recorded(found)
    # Where the recorded paths are here.
    places = {found.recipe.base: base}
    places |= {
        term.source.path: here.source.path
        for term, here in zip(found.recipe.terms, terms, strict=True)
    }
    options = replace(
        recorded,
        fingerprints={places[name]: value for name, value in recorded.fingerprints.items()},
        rounding=args.rounding or recorded.rounding,
        seed=recorded.seed if args.seed is None else args.seed,
        vocab=args.vocab or recorded.vocab,
        dtype=options.dtype or recorded.dtype,
        force=options.force,
        resume=options.resume,
        allow_missing=options.allow_missing or recorded.allow_missing,
        allow_extra=options.allow_extra or recorded.allow_extra,
        allow_nonfinite=options.allow_nonfinite or recorded.allow_nonfinite,
    )
    _check_seed(args, options)
    out = output_path(args.out) if args.out else default_target(base)
    return Request(((recipe, out),), options)
