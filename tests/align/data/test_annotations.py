"""Annotation files: both formats, and every mistake in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avops.align.data import load_annotations
from avops.errors import DataError

CSV = "item,annotator,label,level\ni1,A,exp,exp\ni1,B,gen,exp\ni2,A,gen,gen\n"


def write(tmp_path: Path, text: str, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    from_csv = load_annotations(write(tmp_path, CSV))
    names, *rows = (line.split(",") for line in CSV.split())
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    from_json = load_annotations(write(tmp_path, "\n\n".join(lines), "a.jsonl"))
    assert from_csv.entries == from_json.entries
    assert from_csv.annotators == ("A", "B")
    assert from_csv.levels == ("exp", "gen")
    assert from_csv.domains == ()


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    text = (
        '\ufeff item ,annotator,label,level,note\r\n"a, ""b""",A, exp ,exp,"two\r\nlines"\r\n\r\n'
    )
    found = load_annotations(write(tmp_path, text))
    assert found.entries[0].item == 'a, "b"'
    assert found.entries[0].label == "exp"
    assert found.ignored == ("note",)


def test_domains_are_read(tmp_path: Path) -> None:
    text = "domain,item,annotator,label,level\nmed,i1,A,exp,exp\nleg,i2,A,exp,exp\n"
    found = load_annotations(write(tmp_path, text))
    assert found.domains == ("med", "leg")
    assert [entry.item for entry in found.of("leg")] == ["i2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv, line 1, field 'item': got the columns (none)"),
        ("item,annotator,label\n", "line 1, field 'level': got the columns item, annotator, label"),
        ("item,annotator,label,level,item\n", "expected each name once"),
        ("item,annotator,label,level\n", "no annotations in the file"),
        (CSV + "i3,A,exp\n", "line 5: got 3 fields, expected 4, as in the header"),
        (CSV + "i3,A,,exp\n", "line 5, field 'label': got an empty text"),
        (CSV + "i2,A,exp,gen\n", "line 5, field 'item': got 'i2' by 'A' again, first on line 4"),
        (CSV + "i2,B,exp,exp\n", "line 5, field 'level': got 'exp', expected 'gen', as item 'i2'"),
        (CSV + "i3,pooled,exp,exp\n", "field 'annotator': got 'pooled', expected another name"),
        (CSV + '"i3,A,exp,exp\n', "expected CSV"),
        (CSV + "i3\ud8ff,A,exp,exp\n", "line 5: got byte 0xed"),
        ("domain," + CSV.replace("\ni", "\nall,i"), "field 'domain': got 'all', expected another"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        load_annotations(write(tmp_path, text))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"item": "i2", "annotator": "A", "label": "x"}', "line 2, field 'level': got nothing"),
        ('{"item": 3, "annotator": "A", "label": "x", "level": "x"}', "'item': got a number"),
        ('{"item": "i2", "annotator": "A", "label": "x", "level": "x"}', "a domain on all lines"),
        ("[]", "line 2: got a list"),
    ],
)
def test_mistakes_in_json_are_named(tmp_path: Path, second: str, message: str) -> None:
    first = '{"item": "i1", "annotator": "A", "label": "x", "level": "x", "domain": "med"}'
    with pytest.raises(DataError) as raised:
        load_annotations(write(tmp_path, f"{first}\n{second}\n", "a.jsonl"))
    assert message in str(raised.value)


def test_an_item_of_two_domains(tmp_path: Path) -> None:
    text = "domain,item,annotator,label,level\nmed,i1,A,exp,exp\nleg,i1,B,exp,exp\n"
    with pytest.raises(DataError, match=r"line 3, field 'domain': got 'leg', expected 'med', as"):
        load_annotations(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: No such file .* item, annotator, label"):
        load_annotations(tmp_path / "none.csv")
