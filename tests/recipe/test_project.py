"""avops.toml."""

from __future__ import annotations

import pytest

from avops.errors import RecipeError
from avops.recipe import parse_project

FULL = """
base = "base.safetensors"
data = "data/test.jsonl"
tokenizer = "tok"
levels = ["exp", "gen"]
template = "{query}|{response}"
[av]
med = "avs/med.safetensors"
fin = { path = "aligned/fin", kind = "aligned" }
"""


def test_full_project() -> None:
    project = parse_project(FULL, file="avops.toml", directory="dir")
    assert (project.base, project.data, project.tokenizer) == (
        "dir/base.safetensors",
        "dir/data/test.jsonl",
        "dir/tok",
    )
    assert project.levels == ("exp", "gen")
    assert project.template == "{query}|{response}"
    assert project.avs["fin"].kind == "aligned"
    assert project.avs["med"].path == "dir/avs/med.safetensors"


def test_the_home_directory_is_meant_by_a_tilde_and_a_slash_only() -> None:
    text = "base = '~/b'\ndata = '~d'\n[av]\nmed = '~/m'\nfin = { path = '~/f' }\nleg = 'a/~/l'\n"
    project = parse_project(text, file="avops.toml", directory="dir", home="/h")
    assert (project.base, project.data) == ("/h/b", "dir/~d")
    assert [av.path for av in project.avs.values()] == ["/h/m", "/h/f", "dir/a/~/l"]


def test_empty_project() -> None:
    assert parse_project("", file="avops.toml").base is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = ", "avops.toml: not valid TOML"),
        ("base = x", r'texts stand in quotes, such as base = "base.safetensors"$'),
        ('base = "C:\\models"', r"in double quotes \\ is an escape: write paths with /$"),
        ("bse = 'x'", r"unknown key 'bse'; did you mean 'base'\?"),
        ("base = 3", "base is 3, expected a non-empty text"),
        ("levels = ['exp']", "expected a list of two or more texts"),
        ("levels = ['exp', 'exp']", "expected a list of two or more texts"),
        ("av = 1", r"expected a table \[av\]"),
        ("[av]\n'a:b' = 'x'", "AV name 'a:b'"),
        ("[av]\nmed = 1", "av.med is 1, expected a path"),
        ("[av]\nmed = {path = 'x', kind = 'lora'}", "kind 'lora', expected path and kind"),
        ("[av]\nmed = {path = 'x', kid = 'delta'}", r"\['kid'\], expected path and kind"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_project(text, file="avops.toml")
