"""avops_recipe.json as a recipe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from avops.errors import RecipeError
from avops.recipe import FileRecord, Source, parse_recipe_file

FULL: dict[str, Any] = {
    "avops": "0.3.0",
    "formula": "base + sum(lam * av)",
    "base": {"path": "base", "fingerprint": "aa"},
    "terms": [
        {
            "av": "med",
            "lam": "-.5",
            "path": "avs/med.safetensors",
            "kind": "delta",
            "fingerprint": "bb",
            "rules": [{"pattern": "model.layers.0-3.*", "factor": "0.5"}],
        },
        {"av": "fin", "lam": "1/3", "path": "aligned/fin", "kind": "aligned"},
        {"av": "lora", "lam": "1", "path": "lora", "kind": "adapter", "fingerprint": None},
        {"av": "leg", "lam": "0", "path": "leg", "kind": "dropped, since its λ is 0"},
    ],
    "dtype": "BF16",
    "rounding": "dither",
    "seed": 7,
    "vocab": "base",
    "options": {"allow_missing": True},
    "measured": {"elements": 3},
    "files": {"model.safetensors": {"bytes": 12, "xxh3": "00ff"}, "config.json": {"bytes": 3}},
}


def parse(record: Any) -> Any:
    return parse_recipe_file(json.dumps(record), "dir/avops_recipe.json")


def changed(*path: Any, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(FULL))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def test_a_full_recipe() -> None:
    found = parse(FULL)
    med, fin, lora, leg = found.recipe.terms
    assert found.recipe.base == "base"
    assert (med.source, med.lam, med.text) == (
        Source("med", "avs/med.safetensors", "delta"),
        -0.5,
        "-.5",
    )
    assert [str(rule) for rule in med.rules] == ["model.layers.0-3.*=0.5"]
    assert med.lam_of("model.layers.3.x") == -0.25
    assert (fin.text, fin.source.kind, lora.source.kind) == ("1/3", "aligned", "adapter")
    assert (leg.lam, leg.text, leg.source.kind) == (0, "0", "auto")
    assert (found.dtype, found.rounding, found.seed, found.vocab) == ("BF16", "dither", 7, "base")
    assert found.options == {"allow_missing": True}
    assert found.fingerprints == {"base": "aa", "avs/med.safetensors": "bb"}
    assert found.files == {
        "model.safetensors": FileRecord(12, "00ff"),
        "config.json": FileRecord(3, None),
    }


def test_a_term_that_is_the_base_leaves_its_fingerprint() -> None:
    found = parse(changed("terms", 2, "path", value="base"))
    assert found.fingerprints == {"base": "aa", "avs/med.safetensors": "bb"}


def test_a_recipe_as_the_first_version_wrote_it() -> None:
    old = {
        "avops": "0.1.0",
        "formula": "…",
        "base": {"path": "base.safetensors", "fingerprint": "aa"},
        "terms": [],
        "dtype": "as the base",
        "rounding": "nearest",
        "files": ["model.safetensors"],
    }
    found = parse(old)
    assert (found.dtype, found.rounding, found.seed, found.vocab) == (
        None,
        "nearest",
        None,
        "strict",
    )
    assert found.files == {"model.safetensors": FileRecord()}
    assert parse_recipe_file(json.dumps(old).encode(), "f").recipe.terms == ()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"the file is \[\], expected a JSON object"),
        ({"terms": []}, "base is missing; expected a recipe as avops merge writes it"),
        ({"base": {"path": "b"}}, "terms is missing"),
        (changed("bse", value=1), "unknown key 'bse' in the file; did you mean base"),
        (changed("base", value="b"), "base is 'b', expected a JSON object"),
        (changed("base", "path", value=""), "base.path is '', expected a non-empty text"),
        (changed("base", "fingerprint", value=3), "fingerprint of base is 3, expected a text"),
        (changed("terms", value={}), r"terms is {}, expected a list"),
        (changed("terms", 0, value=3), r"terms\[0\] is 3, expected a JSON object"),
        (
            changed("terms", 0, "lam", value=-0.5),
            r"terms\[0\].lam is -0.5, expected a non-empty text",
        ),
        (changed("terms", 0, "lam", value="x"), r"terms\[0\].lam: λ is 'x', expected a finite"),
        (changed("terms", 0, "lam", value="9e39"), r"terms\[0\].lam: λ is '9.*not finite"),
        (
            changed("terms", 0, "lamb", value="1"),
            r"unknown key 'lamb' in terms\[0\]; did you mean lam",
        ),
        (changed("terms", 0, "kind", value="x"), r"terms\[0\].kind is 'x', expected one of auto"),
        (changed("terms", 0, "path", value="a\0"), r"terms\[0\].path is"),
        (changed("terms", 0, "rules", value={}), r"terms\[0\].rules is {}, expected a list"),
        (
            changed("terms", 0, "rules", 0, "factor", value="y"),
            r"rules\[0\].factor: the factor is 'y'",
        ),
        (
            changed("terms", 0, "rules", 0, "pattern", value="3-1"),
            r"terms\[0\].rules\[0\].pattern: pattern '3-1': the range 3-1 matches nothing",
        ),
        (
            changed("terms", 0, "rules", 0, "x", value=1),
            r"unknown key 'x' in terms\[0\].rules\[0\]",
        ),
        (changed("dtype", value=3), "dtype is 3, expected a non-empty text"),
        (changed("rounding", value="up"), "rounding is 'up', expected one of nearest, dither"),
        (changed("vocab", value="union"), "vocab is 'union', expected one of strict, base"),
        (changed("seed", value=True), "seed is True, expected an integer"),
        (changed("seed", value=-1), "seed is -1, expected an integer"),
        (changed("seed", value=1 << 64), "seed is 18446744073709551616, expected an integer of 64"),
        (changed("options", value=[]), r"options is \[\], expected a JSON object"),
        (changed("files", value=3), "files is 3, expected a JSON object"),
        (changed("files", value=[3]), r"files is \[3\], expected a list of names"),
        (changed("files", "config.json", value=3), r"files\['config.json'\] is 3"),
        (
            changed("files", "config.json", "bytes", value=-1),
            r"\.bytes is -1, expected a number of",
        ),
        (changed("files", "config.json", "bytes", value=True), r"\.bytes is True, expected a num"),
        (changed("files", "config.json", "xxh3", value=1), r"\.xxh3 is 1, expected a hexadecimal"),
    ],
)
def test_refuses(record: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=f"dir/avops_recipe.json: {message}|{message}") as caught:
        parse(record)
    assert str(caught.value).startswith("dir/avops_recipe.json: ")


@pytest.mark.parametrize(
    "text",
    ["{", "", b"\xff", '{"base": 1, "base": 2}', '{"seed": NaN}', "[" * 100_000, "9" * 10_000],
)
def test_refuses_what_is_no_json(text: str | bytes) -> None:
    with pytest.raises(RecipeError, match="f.json: "):
        parse_recipe_file(text, "f.json")


@pytest.mark.parametrize(
    ("inside", "message"),
    [('"a": 1, "a": 2', "a key is given twice in one object"), ('"a": NaN', "NaN is no JSON")],
)
def test_refuses_what_json_readers_disagree_about(inside: str, message: str) -> None:
    good = json.dumps(FULL)
    assert good.count('"measured": {') == 1
    text = good.replace('"measured": {', f'"measured": {{{inside}, ')
    with pytest.raises(RecipeError, match=f"f.json: not a valid recipe in JSON: {message}"):
        parse_recipe_file(text, "f.json")
