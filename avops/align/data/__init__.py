"""Preference data: synthesis through an endpoint, and how far annotators agree.

    with Journal(directory / "journal") as journal:
        asker = Endpoint(Options("http://localhost:8000/v1"), journal)
        data = finish(settings, gather(settings, asker, personas, watch))

Names are loaded on first use: neither the endpoint's client nor scikit-learn before they are
needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avops.align.data.annotations import Annotations, load_annotations
    from avops.align.data.endpoint import Asker, Endpoint, Options
    from avops.align.data.expected import Offline, StageCost, estimate, price_of
    from avops.align.data.files import contents, publish, source_of
    from avops.align.data.journal import Journal
    from avops.align.data.personas import Persona, load_personas, sample
    from avops.align.data.raters import Agreement, agreement
    from avops.align.data.request import Answer, Chat, Request
    from avops.align.data.settings import Cleaning, Settings, Shares, Tree
    from avops.align.data.synth import DataSet, Gathered, Usage, finish, gather
    from avops.align.data.templates import Templates, load_templates, write_templates

__all__ = [
    "Agreement",
    "Annotations",
    "Answer",
    "Asker",
    "Chat",
    "Cleaning",
    "DataSet",
    "Endpoint",
    "Gathered",
    "Journal",
    "Offline",
    "Options",
    "Persona",
    "Request",
    "Settings",
    "Shares",
    "StageCost",
    "Templates",
    "Tree",
    "Usage",
    "agreement",
    "contents",
    "estimate",
    "finish",
    "gather",
    "load_annotations",
    "load_personas",
    "load_templates",
    "price_of",
    "publish",
    "sample",
    "source_of",
    "write_templates",
]

_MODULES = {
    "annotations": ("Annotations", "load_annotations"),
    "raters": ("Agreement", "agreement"),
    "endpoint": ("Asker", "Endpoint", "Options"),
    "expected": ("Offline", "StageCost", "estimate", "price_of"),
    "files": ("contents", "publish", "source_of"),
    "journal": ("Journal",),
    "personas": ("Persona", "load_personas", "sample"),
    "request": ("Answer", "Chat", "Request"),
    "settings": ("Cleaning", "Settings", "Shares", "Tree"),
    "synth": ("DataSet", "Gathered", "Usage", "finish", "gather"),
    "templates": ("Templates", "load_templates", "write_templates"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'avops.align.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avops.align.data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
