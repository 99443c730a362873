"""The data set on the disk: item files, personas, a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avops.align.data.settings import Settings
from avops.align.data.synth import SPLITS, DataSet, Entry
from avops.errors import OutputError
from avops.version import __version__

JOURNAL = "journal"
MANIFEST = "manifest.json"
PERSONAS = "personas.jsonl"


def contents(
    data: DataSet, settings: Settings, *, endpoint: str, sources: Sequence[dict[str, Any]]
) -> dict[str, bytes]:
    """The files of a data set by name, the manifest last.

    endpoint: the address that was asked. sources: persona files, as the manifest names them.
    """
    files = {
        f"{split}.jsonl": _lines([_item(entry) for entry in data.splits[split]]) for split in SPLITS
    }
    files[PERSONAS] = _lines([{**p.to_dict(), "split": split} for p, split in data.personas])
    manifest = {
        "avops": __version__,
        "kind": "synth",
        "endpoint": endpoint,
        "models": list(data.models),
        "settings": settings.to_dict(),
        "personas": list(sources),
        "counts": {stage: dict(counts) for stage, counts in data.counts.items()},
        "usage": {stage: asdict(usage) for stage, usage in data.usage.items()},
        "files": {
            name: {"sha256": hashlib.sha256(raw).hexdigest(), "lines": raw.count(b"\n")}
            for name, raw in files.items()
        },
    }
    files[MANIFEST] = json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"
    return files


def check_target(
    directory: Path, settings: Settings, sources: Sequence[dict[str, Any]], *, force: bool
) -> None:
    """Refuse, before anything is paid, a directory with a data set of other settings.

    Raises OutputError, naming the settings that differ, unless ``force``.
    """
    path = directory / MANIFEST
    if force or not path.exists():
        return
    try:
        found = json.loads(path.read_bytes())
        theirs = {**found["settings"], "personas": found["personas"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path}: no manifest of a data set ({type(error).__name__}: {error}); "
            "give another directory, or replace it with --force"
        ) from None
    ours = json.loads(json.dumps({**settings.to_dict(), "personas": list(sources)}))
    other = [name for name in ours if ours[name] != theirs.get(name)]
    if other:
        raise OutputError(
            f"{directory}: holds a data set of other settings ({', '.join(other)}); "
            "--force replaces it, or give another directory"
        )


def publish(directory: Path, files: dict[str, bytes], *, force: bool) -> list[str]:
    """Write ``files`` into ``directory``; returns the names of those that were written.

    A file with the same bytes is left alone. Raises OutputError, before anything is written, when
    one is there with others, unless ``force``.
    """
    from avops.disk import write_file

    changed = [name for name, raw in files.items() if not _same(directory / name, raw)]
    if not force:
        for name in changed:
            if (directory / name).exists():
                raise OutputError(
                    f"{directory / name}: exists already, from other settings or answers; "
                    "--force replaces it, or give another directory"
                )
    for name in changed:
        write_file(directory / name, files[name], force=force)
    return changed


def source_of(path: Path, count: int) -> dict[str, Any]:
    """A persona file in the manifest; count: how many personas it holds."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "sha256": digest, "personas": count}


def _same(path: Path, raw: bytes) -> bool:
    try:
        return path.read_bytes() == raw
    except OSError:
        return False


def _item(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.query.id,
        "domain": entry.query.domain,
        "query": entry.query.text,
        "responses": dict(entry.responses),
    }


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
