"""The journal: what it finds again, what a crash costs, and who may write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avops.align.data import Answer, Chat, Journal
from avops.errors import DataError, OutputError, WriteError

CHAT = Chat("m")
ONE, TWO = (CHAT.request("queries", name, f"prompt {name}") for name in ("one", "two"))
ANSWER = Answer("text with \ud800 and λ", "stop", None, "m-1", 3, None)


def test_answers_are_found_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.add(ONE, ANSWER)
        assert journal.get(ONE) == ANSWER
        assert journal.get(TWO) is None
    with Journal(tmp_path / "j") as journal:
        assert len(journal) == 1
        assert journal.get(ONE) == ANSWER
        assert journal.torn == 0


def test_a_request_is_known_by_what_is_sent() -> None:
    again = CHAT.request("queries", "another asker", "prompt one")
    assert again.key == ONE.key
    others = [
        CHAT.request("personas", "one", "prompt one"),
        CHAT.request("queries", "one", "prompt one", 1),
        Chat("n").request("queries", "one", "prompt one"),
        Chat("m", temperature=0.5).request("queries", "one", "prompt one"),
        Chat("m", max_tokens=5).request("queries", "one", "prompt one"),
        Chat("m", extra={"top_p": 1}).request("queries", "one", "prompt one"),
    ]
    assert len({ONE.key, *(other.key for other in others)}) == 7


def test_keys_stay_what_they_are() -> None:
    """Journals of earlier versions are worth money."""
    assert ONE.key == "faacb6bcababe8ecf2b63c1f56150ab4"


def test_a_torn_line_is_dropped_and_said(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(ONE, ANSWER)
        journal.add(TWO, ANSWER)
    path = tmp_path / "queries.jsonl"
    data = path.read_bytes()
    for cut in (1, 20):
        path.write_bytes(data[:-cut])
        torn = len(data) - cut - data.index(b"\n") - 1
        with Journal(tmp_path, write=False) as journal:
            assert (journal.torn, len(journal)) == (torn, 1)
        assert len(path.read_bytes()) == len(data) - cut
        with Journal(tmp_path) as journal:
            assert (journal.torn, len(journal)) == (torn, 1)
            journal.add(TWO, ANSWER)
        assert path.read_bytes() == data


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nonsense", b'{"key": 1}', b"\xff"])
def test_a_damaged_line_is_an_error(tmp_path: Path, line: bytes) -> None:
    with Journal(tmp_path) as journal:
        journal.add(ONE, ANSWER)
    path = tmp_path / "queries.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with (
        pytest.raises(DataError, match=r"queries.jsonl, line 1: .*remove this line"),
        Journal(tmp_path),
    ):
        pass
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    with Journal(tmp_path) as journal:  # the lock was let go
        assert len(journal) == 1


def test_wrong_types_are_an_error(tmp_path: Path) -> None:
    record = {"key": 1, "text": "x", "finish": "", "refused": None, "model": ""}
    record |= {"prompt_tokens": None, "completion_tokens": None}
    (tmp_path / "queries.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match="expected key and text as texts"), Journal(tmp_path):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path):
        with pytest.raises(OutputError, match="another run is at work there"), Journal(tmp_path):
            pass
        with Journal(tmp_path, write=False) as reader:  # a dry run reads beside it
            assert len(reader) == 0
    with Journal(tmp_path):
        pass


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "none", write=False) as journal:
        assert len(journal) == 0
    assert not (tmp_path / "none").exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be made or written"),
        Journal(tmp_path / "file" / "journal"),
    ):
        pass


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write = os.write
    with Journal(tmp_path) as journal:
        journal.add(ONE, ANSWER)
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(WriteError, match=r"queries.jsonl: writing failed .* make room"):
            journal.add(TWO, ANSWER)
        assert journal.get(TWO) is None
    monkeypatch.undo()
    with Journal(tmp_path) as journal:
        assert (len(journal), journal.torn) == (1, 0)
