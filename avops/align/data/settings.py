"""What decides a data set: with the endpoint's answers, nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avops.align.data.request import Chat
from avops.align.data.templates import Templates
from avops.errors import UserError


@dataclass(frozen=True)
class Tree:
    """CreatePersona: how many roots, rounds after them, and relatives of each persona a round."""

    roots: int = 5
    rounds: int = 3
    branch: int = 5

    def __post_init__(self) -> None:
        for name, least in (("roots", 0), ("rounds", 0), ("branch", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"--{name} {value}: expected {least} or more")

    @property
    def size(self) -> int:
        """Personas if every list is whole and no two are equal."""
        return sum(self.roots * self.branch**done for done in range(self.rounds + 1))


@dataclass(frozen=True)
class Cleaning:
    """What is dropped beyond what is unusable.

    scripts: Unicode scripts of letters, none for any. language: as ISO 639-1 names it, or None.
    """

    scripts: tuple[str, ...] = ("LATIN",)
    language: str | None = None


@dataclass(frozen=True)
class Shares:
    """test: of all personas. validation: of the others. The rest is for training."""

    test: float = 0.2
    validation: float = 0.03

    def __post_init__(self) -> None:
        for name in ("test", "validation"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"--{name} {value}: expected a share from 0 to below 1")


@dataclass(frozen=True)
class Settings:
    """Everything that decides which requests are made and what becomes of the answers.

    domains: names of the templates' domains. queries: for each persona and domain. paragraphs: the
    fewest and the most; each response draws its number.
    """

    chat: Chat
    templates: Templates
    domains: tuple[str, ...]
    seed: int = 1
    tree: Tree = Tree()
    queries: int = 1
    paragraphs: tuple[int, int] = (1, 5)
    cleaning: Cleaning = Cleaning()
    shares: Shares = Shares()

    def __post_init__(self) -> None:
        for domain in self.domains:
            if domain not in self.templates.domains:
                raise UserError(
                    f"--domains {domain}: not in {self.templates.source}, expected one of "
                    f"{', '.join(self.templates.domains)}; describe it in templates.toml"
                )
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise UserError(f"--domains {','.join(self.domains)}: expected different names")
        if self.queries < 1:
            raise UserError(f"--queries {self.queries}: expected 1 or more")
        low, high = self.paragraphs
        if not 1 <= low <= high:
            raise UserError(f"--paragraphs {low}-{high}: expected a range such as 1-5")

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        templates = self.templates
        return {
            "model": self.chat.model,
            "temperature": self.chat.temperature,
            "max_tokens": self.chat.max_tokens,
            "body": dict(self.chat.extra),
            "seed": self.seed,
            "tree": vars_of(self.tree),
            "domains": {name: templates.domains[name] for name in self.domains},
            "levels": list(templates.levels),
            "queries": self.queries,
            "paragraphs": list(self.paragraphs),
            "scripts": list(self.cleaning.scripts),
            "language": self.cleaning.language,
            "shares": vars_of(self.shares),
            "templates": {"sha256": templates.digest(), "files": templates.digests()},
        }


def vars_of(settings: Tree | Shares) -> Mapping[str, Any]:
    """The fields by name."""
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}
