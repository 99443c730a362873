"""Templates: ours, edited ones, and every mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from avops.align.data import load_templates, write_templates
from avops.align.data.templates import level_file
from avops.errors import DataError, OutputError
from fake_endpoint import TEMPLATES
from fake_endpoint import write_templates as write_fake


def test_ours_are_complete_and_editable(tmp_path: Path) -> None:
    ours = load_templates()
    assert ours.levels == ("exp", "gen", "avd")
    assert ours.declining == ("avd",)
    assert list(ours.domains) == ["med", "fin", "leg"]
    written = write_templates(tmp_path / "mine")
    assert {path.name for path in written} == set(ours.files)
    mine = load_templates(tmp_path / "mine")
    assert mine.digest() == ours.digest()
    path = tmp_path / "mine" / "level-gen.txt"
    path.write_text(path.read_text().replace("friendly", "cheerful"))
    assert load_templates(tmp_path / "mine").digest() != ours.digest()


def test_ours_use_what_they_are_given() -> None:
    ours = load_templates()
    values = {"count": "5", "persona": "PERSON", "domain": "DOMAIN", "query": "QUERY"}
    for name in (*(level_file(level) for level in ours.levels), "queries.txt", "related.txt"):
        text = ours.fill(name, **values, paragraphs="2 paragraphs")
        assert "{" not in text
        if name.startswith("level"):
            assert "QUERY" in text
            assert "2 paragraphs" in text
            assert "DOMAIN" in text


def test_filling_is_one_pass(tmp_path: Path) -> None:
    templates = load_templates(write_fake(tmp_path))
    text = templates.fill("level-exp.txt", query="of {paragraphs} and {", paragraphs="1 paragraph")
    assert text == "EXP 1 paragraph of {paragraphs} and {"


def test_other_braces_stand_for_themselves(tmp_path: Path) -> None:
    write_fake(tmp_path)
    (tmp_path / "level-exp.txt").write_text('Reply as {"a": {1}} to {query}, for $5\n')
    text = load_templates(tmp_path).fill("level-exp.txt", query="Q")
    assert text == 'Reply as {"a": {1}} to Q, for $5'


def test_levels_are_free_to_name(tmp_path: Path) -> None:
    write_fake(tmp_path)
    (tmp_path / "templates.toml").write_text(
        'levels = ["safe", "unsafe"]\n[domains]\nany = "anything"\n'
    )
    for level in ("safe", "unsafe"):
        (tmp_path / f"level-{level}.txt").write_text("{query}")
    templates = load_templates(tmp_path)
    assert templates.levels == ("safe", "unsafe")
    assert templates.refusals == templates.declining == ()
    assert "level-exp.txt" not in templates.files  # what is not used does not count
    assert templates.digests().keys() == templates.files.keys()


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "roots.txt").write_text("mine {count}")
    with pytest.raises(OutputError, match=r"roots.txt: exists already, and may have been edited"):
        write_templates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["roots.txt"]


TOML = TEMPLATES["templates.toml"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("templates.toml", None, "no file templates.toml; avops data templates DIR"),
        ("templates.toml", "levels = [", "templates.toml: not valid TOML"),
        ("templates.toml", "\ud8ff", "not valid TOML"),
        ("templates.toml", "level = []", "unknown key 'level', expected levels, declining"),
        (
            "templates.toml",
            TOML.replace('"exp", ', '"gen", '),
            "expected a list of different names",
        ),
        ("templates.toml", TOML.replace('"exp", ', '"e xp", '), "letters, digits and _"),
        (
            "templates.toml",
            TOML.replace('"gen", "avd"]', '"gen", "x"]', 1),
            "declining names 'avd'",
        ),
        ("templates.toml", TOML.replace('med = "medicine"', 'all = "x"'), "[domains] is"),
        ("templates.toml", TOML.replace('med = "medicine"', "med = 1"), "[domains] is"),
        ("templates.toml", TOML.partition("[domains]")[0], "[domains] is {}"),
        ("templates.toml", TOML.replace('["I cannot help with"]', "3"), "refusals is 3, expected"),
        ("level-gen.txt", None, "no file level-gen.txt, expected templates.toml, roots.txt"),
        ("level-gen.txt", " \n", "level-gen.txt: empty, expected a prompt"),
        ("level-gen.txt", "GEN", "level-gen.txt: the placeholder {query} is missing"),
        ("roots.txt", "{count}\n{persona}", "roots.txt, line 2: unknown placeholder {persona}"),
        ("queries.txt", "{count} {persona}", "queries.txt: the placeholder {domain} is missing"),
        (
            "level-exp.txt",
            "{query} {qurey}",
            "unknown placeholder {qurey}, expected one of {query}",
        ),
        ("level-exp.txt", "\ud8ff{query}", "expected UTF-8 text"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    write_fake(tmp_path)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError) as raised:
        load_templates(tmp_path)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory; make one with: avops data templates"):
        load_templates(tmp_path / "none")
