"""What is dropped, and why. Nothing is mended but for white space around a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from avops.align.data.request import Answer
from avops.align.data.settings import Cleaning
from avops.errors import MissingExtraError, UserError

FOREIGN = 0.05
"""The share of letters from other scripts above which a text is dropped: a β or μ is no reason."""
SURE = 30
"""Letters below which a text's language is not judged."""
_ENDED = ("stop", "", "eos", "end_turn", "stop_sequence")


def encodable(text: str) -> bool:
    """Whether UTF-8 can encode it: JSON can spell halves of surrogate pairs."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


@dataclass(frozen=True)
class Cleaner:
    """Judges texts by their script and language.

    scripts: names as in Unicode's character names, none for any. language: what ``detect`` must
    say.
    """

    scripts: tuple[str, ...]
    language: str | None
    detect: Callable[[str], str] | None

    def foreign(self, text: str) -> str | None:
        """Why ``text`` is in a wrong script or language; None when it is in none."""
        letters = [char for char in text if unicodedata.category(char).startswith("L")]
        if self.scripts and letters:
            others = sum(_script(char) not in self.scripts for char in letters)
            if others > FOREIGN * len(letters):
                return "another script"
        if self.detect is not None and len(letters) >= SURE and self.detect(text) != self.language:
            return "another language"
        return None

    def response(self, answer: Answer, refusals: Sequence[str]) -> str | None:
        """Why an answer cannot stand as a response; None when it can.

        refusals: how a refusal begins, of a level that does not decline.
        """
        text = answer.text.strip()
        if answer.refused is not None:
            return "declined by the endpoint"
        if answer.finish not in _ENDED:
            return "truncated" if answer.finish in ("length", "max_tokens") else "not finished"
        if not text:
            return "empty"
        if not encodable(text):
            return "half a surrogate pair"
        if (found := self.foreign(text)) is not None:
            return found
        start = _plain(text[:200])
        if any(start.startswith(_plain(refusal)) for refusal in refusals):
            return "a refusal"
        return None


def cleaner(cleaning: Cleaning) -> Cleaner:
    """The cleaner for ``cleaning``.

    Raises UserError for an unknown script or language, MissingExtraError without the package that
    tells languages.
    """
    known = _scripts() if cleaning.scripts else frozenset()
    for script in cleaning.scripts:
        if script not in known:
            raise UserError(
                f"--script {script}: no Unicode script, expected one such as LATIN, CYRILLIC, CJK, "
                "several with commas, or any"
            )
    detect = None if cleaning.language is None else _detector(cleaning.language)
    return Cleaner(cleaning.scripts, cleaning.language, detect)


def _detector(language: str) -> Callable[[str], str]:
    try:
        import py3langid
    except ImportError:
        raise MissingExtraError("py3langid", "align", "--language") from None
    known = sorted(str(name) for name, _ in py3langid.rank("a"))
    if language not in known:
        raise UserError(f"--language {language}: unknown, expected one of {', '.join(known)}")
    return lambda text: str(py3langid.classify(text)[0])


@cache
def _script(char: str) -> str:
    """The script of a letter: the first word of its Unicode name."""
    return unicodedata.name(char, "unnamed").split()[0].split("-")[0]


@cache
def _scripts() -> frozenset[str]:
    letters = (chr(code) for code in range(0x20000) if not 0xD800 <= code <= 0xDFFF)
    return frozenset(_script(c) for c in letters if unicodedata.category(c).startswith("L"))


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").split()).casefold()
