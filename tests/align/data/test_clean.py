"""Cleaning: scripts, languages, refusals, ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from avops.align.data import Answer, Cleaning
from avops.align.data.clean import FOREIGN, SURE, Cleaner, cleaner
from avops.errors import MissingExtraError, UserError


def test_a_few_foreign_letters_are_no_reason() -> None:
    judge = cleaner(Cleaning())
    assert judge.foreign("1 + 1 = 2?") is None
    assert judge.foreign("Blutdruck: größer als 140 mmHg, naïve façade") is None
    assert judge.foreign("a" * 19 + "β") is None  # 5 %
    assert judge.foreign("a" * 18 + "β") == "another script"
    assert judge.foreign("你好，我有一个问题") == "another script"
    assert FOREIGN == 0.05


def test_scripts_are_a_choice() -> None:
    japanese = cleaner(Cleaning(("CJK", "HIRAGANA", "KATAKANA")))
    assert japanese.foreign("頭がいたいです。アスピリンは?") is None
    assert japanese.foreign("My head aches.") == "another script"
    assert cleaner(Cleaning(())).foreign("Мой head") is None
    with pytest.raises(UserError, match="--script KLINGON: no Unicode script, expected one such"):
        cleaner(Cleaning(("KLINGON",)))


def test_languages_are_the_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of short texts nothing is said: the detector would guess."""
    asked = []

    def classify(text: str) -> tuple[str, float]:
        asked.append(text)
        return ("de" if "und" in text else "en"), 1.0

    fake = SimpleNamespace(classify=classify, rank=lambda _: [("en", 0.0), ("de", 0.0)])
    monkeypatch.setitem(sys.modules, "py3langid", fake)
    judge = cleaner(Cleaning(language="en"))
    assert judge.foreign("und " * SURE) == "another language"
    assert judge.foreign("and " * SURE) is None
    asked.clear()
    assert judge.foreign("und") is None
    assert not asked
    with pytest.raises(UserError, match="--language xx: unknown, expected one of de, en"):
        cleaner(Cleaning(language="xx"))


def test_languages_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(MissingExtraError, match=r"--language needs the package 'py3langid'"):
        cleaner(Cleaning(language="en"))


def test_the_real_detector() -> None:
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    judge = cleaner(Cleaning(language="en"))
    assert judge.foreign("My knee has been swollen for three weeks; what should I do?") is None
    german = "Mein Knie ist seit drei Wochen geschwollen; was soll ich jetzt tun?"
    assert judge.foreign(german) == "another language"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("Fine.", "stop"), None),
        (Answer("Fine.", ""), None),
        (Answer("Fine.", "eos"), None),
        (Answer("Fine.", "length"), "truncated"),
        (Answer("Fine.", "max_tokens"), "truncated"),
        (Answer("Fine.", "error"), "not finished"),
        (Answer("", "stop"), "empty"),
        (Answer(" \n", "stop"), "empty"),
        (Answer("x", "stop", refused="no"), "declined by the endpoint"),
        (Answer("x\udfff", "stop"), "half a surrogate pair"),
        (Answer("I’m  SORRY, but I can't do that.", "stop"), "a refusal"),
        (Answer("Well, I'm sorry, but I can't.", "stop"), None),
        (Answer("ответ", "stop"), "another script"),
    ],
)
def test_why_an_answer_cannot_stand(answer: Answer, reason: str | None) -> None:
    judge = Cleaner(("LATIN",), None, None)
    assert judge.response(answer, ["I'm sorry, but I can"]) == reason
    if reason == "a refusal":
        assert judge.response(answer, ()) is None
