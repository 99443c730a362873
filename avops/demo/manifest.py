"""world.json: what is already made, so that a second run reuses it and an interrupted one resumes.

A stage is recorded once all of its files are published. It counts as made while its files are
there, unchanged, and the files it was made from are the ones recorded. A missing file is made
again; a changed one is somebody's work and stops the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avops.disk import Staging
from avops.errors import OutputError

NAME = "world.json"
Digests = dict[str, str]


def publish(path: Path, data: bytes) -> None:
    """Write the file ``path`` whole or not at all, replacing what is there."""
    staging = Staging(path, directory=False, force=True)
    staging.check(len(data))
    with staging:
        staging.add(path.name, data)
        staging.commit()


class Manifest:
    """The stages made so far in ``directory``, for one identity (seed, size, recipe version).

    stages: per stage the SHA-256 of the files it was made from ("needs") and of its own ("files").
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory = directory
        self.identity = dict(identity)
        self.stages: dict[str, dict[str, Digests]] = {}

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, Any], outputs: list[str]) -> Manifest:
        """The manifest in ``directory``, or a new one where there is none.

        Raises OutputError when the directory holds another world, or files named in ``outputs``
        that no world.json accounts for.
        """
        manifest = cls(directory, identity)
        path = directory / NAME
        if not path.exists():
            if strangers := [name for name in outputs if (directory / name).exists()]:
                raise OutputError(
                    f"{directory / strangers[0]}: exists, but no {NAME} says that the demo made "
                    "it; give the demo a directory of its own"
                )
            manifest.save()
            return manifest
        try:
            record = json.loads(path.read_bytes())
            found = {key: record[key] for key in manifest.identity}
            manifest.stages = {
                name: {part: dict(stage[part]) for part in ("needs", "files")}
                for name, stage in record["stages"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path}: not a demo manifest ({type(error).__name__}: {error}); "
                f"remove {directory} or give another directory"
            ) from None
        if found != manifest.identity:
            raise OutputError(
                f"{directory}: holds the demo of {_say(found)}, got {_say(manifest.identity)}; "
                "give another directory, or remove this one"
            )
        return manifest

    def made(self, stage: str, needs: Digests) -> bool:
        """Whether ``stage`` is already made from ``needs``.

        Raises OutputError when one of its files was changed since.
        """
        record = self.stages.get(stage)
        if record is None:
            return False
        present = [name for name in record["files"] if (self.directory / name).exists()]
        for name in present:
            if digest(self.directory / name) != record["files"][name]:
                raise OutputError(
                    f"{self.directory / name}: changed since the demo wrote it (its SHA-256 is not "
                    f"the one in {NAME}); move it elsewhere, then run the demo again"
                )
        return len(present) == len(record["files"]) and record["needs"] == needs

    def record(self, stage: str, needs: Digests, files: list[str]) -> None:
        """Note that ``stage`` was made."""
        made = {name: digest(self.directory / name) for name in files}
        self.stages[stage] = {"needs": needs, "files": made}
        self.save()

    def digests(self, stage: str) -> Digests:
        """The files of a stage that is made, with their SHA-256."""
        return self.stages[stage]["files"]

    def save(self) -> None:
        """Write world.json."""
        data = {**self.identity, "stages": self.stages}
        publish(self.directory / NAME, json.dumps(data, indent=1).encode() + b"\n")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(identity: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in identity.items())
