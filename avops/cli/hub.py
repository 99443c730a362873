"""Hub ids on the command line: fetched with a progress bar, before the verb's own work."""

from __future__ import annotations

from avops.cli import output


def local(text: str, *, quiet: bool = False) -> str:
    """``text`` where it is a path, otherwise where the hub id ``text`` is on this machine.

    Raises CheckpointError or MissingExtraError as ``avops.disk.hub.resolve`` does.
    """
    from avops.disk.hub import is_remote, local_path

    if not is_remote(text):
        return text
    with output.progress(f"fetching {text}", quiet=quiet) as progress:
        return local_path(text, progress=progress)
