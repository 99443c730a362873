"""The embedded judge: a text classifier trained on the data's own responses.

TF-IDF of word pairs and of character 2- to 5-grams, and a logistic regression (scikit-learn). It
knows nothing but how the responses of each level are worded, so its accuracy on responses that it
has not seen is part of every result; on answers of another kind it still names a level, whose
probability is kept. ``judge_file`` writes it to a file and reads it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avops.align.verdicts import Verdict
from avops.errors import DataError, MissingExtraError
from avops.score import wilson

if TYPE_CHECKING:
    from avops.score import Items


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on the responses of items that were not trained on.

    n: responses; right: placed well. new, new_right: those whose text does not stand in the
    training data word for word. by_level: right and n of each level.
    """

    source: str
    n: int
    right: int
    new: int
    new_right: int
    by_level: dict[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        """The share that was placed well."""
        return self.right / self.n

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        low, high = wilson(self.right, self.n)
        return {
            "data": self.source,
            "n": self.n,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "new_texts": self.new,
            "new_accuracy": self.new_right / self.new if self.new else None,
            "levels": {
                level: {"n": n, "accuracy": right / n}
                for level, (right, n) in self.by_level.items()
            },
        }


@dataclass(frozen=True)
class Training:
    """What a judge was trained on: source, number of items, levels.

    queries, texts: the marks (see ``mark``) of (domain, query) and of (level, response).
    """

    source: str
    items: int
    levels: tuple[str, ...]
    queries: frozenset[str]
    texts: frozenset[str]

    @classmethod
    def of(cls, items: Items) -> Training:
        """Of ``items``."""
        return cls(
            items.source,
            len(items),
            items.levels,
            frozenset(mark(item.domain, item.query) for item in items),
            frozenset(
                mark(level, text) for item in items for level, text in item.responses.items()
            ),
        )


def mark(first: str, second: str) -> str:
    """Two texts as 24 hexadecimal digits: enough to know them again, not to read them."""
    data = f"{len(first)} {first} {second}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:24]


def new_model(vocabularies: Sequence[dict[str, int] | None] = (None, None)) -> Any:
    """An untrained classifier, of given vocabularies or of those that it will find.

    Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-learn", "align", "the embedded judge") from error
    words, characters = vocabularies
    return make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=words),
            TfidfVectorizer(
                analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, vocabulary=characters
            ),
        ),
        LogisticRegression(C=10.0, max_iter=2000),
    )


class TextJudge:
    """Classifies answers by their wording. Use ``TextJudge.train``, or ``judge_file.load_judge``.

    model: the trained classifier. training: what it knows.
    """

    def __init__(self, model: Any, training: Training) -> None:
        self.model = model
        self.training = training
        self.held_out: HeldOut | None = None

    @classmethod
    def train(cls, items: Items) -> TextJudge:
        """A judge of the levels of ``items``, trained on all of their responses.

        The same items give the same judge. Raises DataError where levels share all of their texts,
        MissingExtraError without scikit-learn.
        """
        model = new_model()
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if len(items.levels) < 2:
            raise DataError(
                f"{items.source}: a single level {items.levels[0]!r}, expected two or more to tell "
                "apart"
            )
        texts = [text for item in items for text in item.responses.values()]
        labels = [level for item in items for level in item.responses]
        try:
            # More threads wait for each other at every step: ten times the time on busy cores. And
            # the order of sums is theirs, so that their number would decide the last bits.
            with threadpool_limits(1):
                model.fit(texts, labels)
        except ValueError as error:
            raise DataError(
                f"{items.source}: no judge can be trained on these responses: {error}; give others "
                "with --judge-data, or an --endpoint"
            ) from None
        return cls(model, Training.of(items))

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that it tells apart."""
        return self.training.levels

    def check(self, items: Items) -> None:
        """Refuse to judge answers to queries that it was trained on. Raises DataError."""
        for number, item in enumerate(items):
            if mark(item.domain, item.query) in self.training.queries:
                raise DataError(
                    f"{items.place(number)}: the embedded judge was trained on this query "
                    f"({self.training.source}), and its accuracy here would mean nothing; give "
                    "other items with --judge-data, or judge others"
                )
        if set(items.levels) != set(self.levels):
            raise DataError(
                f"{self.training.source}: levels {', '.join(self.levels)}, expected those of "
                f"{items.source}: {', '.join(items.levels)}"
            )

    def measure(self, items: Items) -> HeldOut:
        """Its accuracy on the responses of ``items``, which it must not know; kept, too."""
        self.check(items)
        pairs = [(level, text) for item in items for level, text in item.responses.items()]
        found = self.model.predict([text for _, text in pairs])
        right = [level == str(guess) for (level, _), guess in zip(pairs, found, strict=True)]
        new = [mark(*pair) not in self.training.texts for pair in pairs]
        by_level = {
            level: (
                sum(good for (own, _), good in zip(pairs, right, strict=True) if own == level),
                sum(own == level for own, _ in pairs),
            )
            for level in items.levels
        }
        self.held_out = HeldOut(
            items.source,
            len(pairs),
            sum(right),
            sum(new),
            sum(good and unseen for good, unseen in zip(right, new, strict=True)),
            by_level,
        )
        return self.held_out

    def judge(self, query: str, answer: str) -> Verdict:  # noqa: ARG002
        """The likeliest level; none for an answer without words."""
        return self.judge_all([answer])[0]

    def judge_all(self, answers: Sequence[str]) -> list[Verdict]:
        """Verdicts on ``answers``, at once."""
        spoken = [i for i, answer in enumerate(answers) if answer.strip()]
        verdicts = [Verdict(None)] * len(answers)
        if spoken:
            table = self.model.predict_proba([answers[i] for i in spoken])
            names = [str(name) for name in self.model.classes_]
            for i, row in zip(spoken, table, strict=True):
                best = int(row.argmax())
                verdicts[i] = Verdict(names[best], float(row[best]))
        return verdicts

    def about(self) -> dict[str, Any]:
        """What a result needs to say about the judge."""
        import sklearn

        return {
            "kind": "embedded",
            "classifier": "TF-IDF (words 1-2, characters 2-5), logistic regression",
            "scikit-learn": sklearn.__version__,
            "trained_on": self.training.source,
            "items": self.training.items,
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
        }
