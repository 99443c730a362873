"""Hub ids: ``owner/name`` or ``owner/name@revision`` becomes a local snapshot directory.

An existing local path always wins. Then huggingface_hub's cache is asked, without the network:
a branch that is cached is taken as it is there. What is missing is downloaded. Cache, endpoint,
token, offline mode and their environment variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, ...)
are huggingface_hub's own business.
"""

from __future__ import annotations

import glob
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avops.disk.checkpoint import INDEX
from avops.disk.hub_files import Wanted, choose, guess
from avops.errors import AvopsError, CheckpointError, MissingExtraError

Progress = Callable[[int, int], None]

# The form of an id. The hub's own, stricter validation follows.
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}(@\w[\w./+-]{0,250})?", re.ASCII)
# A name with one of these endings is a file that is not there, not a repository.
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".gguf", ".yml", ".yaml")


def is_hub_id(text: str) -> bool:
    """Whether ``text`` has the form of a hub id. A local path may have it, too."""
    repo = text.partition("@")[0]
    return bool(_ID.fullmatch(text)) and not repo.endswith(_FILES) and ".." not in text


def is_remote(text: str) -> bool:
    """Whether ``text`` is a hub id and no local path."""
    return is_hub_id(text) and not os.path.exists(text)


def local_path(text: str, *, allow_download: bool = True, progress: Progress | None = None) -> str:
    """``text`` where it is a path, otherwise the snapshot directory of the hub id ``text``.

    A text that is neither comes back unchanged: opening it says what is wrong.
    Raises what ``resolve`` raises.
    """
    if not is_remote(text):
        return text
    return str(resolve(text, allow_download=allow_download, progress=progress))


def resolve(text: str, *, allow_download: bool = True, progress: Progress | None = None) -> Path:
    """The local path that ``text``, a path or a hub id, stands for.

    Without ``allow_download`` the network is not used. ``progress(done, total)`` gets bytes
    downloaded. Raises CheckpointError when there is no such thing or it cannot be had,
    MissingExtraError without huggingface_hub.
    """
    if os.path.exists(text):
        return Path(text)
    if not is_hub_id(text):
        raise CheckpointError(
            f"{text}: no such file or directory, and no hub id either; expected a path, "
            "owner/name or owner/name@revision"
        )
    repo, _, revision = text.partition("@")
    return _Repository(text, repo, revision or None).resolve(allow_download, progress)


class _Repository:
    """One repository at one revision, here and on the hub."""

    def __init__(self, text: str, repo: str, revision: str | None) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "huggingface_hub":
                raise
            purpose = f"{text} is no local path; taking it from the Hugging Face hub"
            raise MissingExtraError("huggingface_hub", "hub", purpose) from None
        self.text, self.repo, self.revision = text, repo, revision
        self._hub: Any = huggingface_hub
        self._errors = self._hub.errors
        try:
            self._hub.utils.validate_repo_id(repo)
        except self._errors.HFValidationError as error:
            raise CheckpointError(
                f"{text}: no such file or directory, and no valid hub id: {_line(error)}"
            ) from None

    def resolve(self, allow_download: bool, progress: Progress | None) -> Path:
        """The snapshot, from the cache or the hub."""
        folder = self._cached()
        lacking = Wanted((INDEX,)) if folder is None else self._lacking(folder)
        if folder is not None and not lacking:
            return folder
        # Not every model has a tokenizer, so weights alone will do where there is no more.
        spare = folder if folder is not None and not lacking.weights else None
        if not allow_download:
            if spare is not None:
                return spare
            raise self._absent(folder, lacking, "downloads are not allowed here")
        try:
            return self._download(folder, progress)
        except AvopsError:
            raise
        except Exception as error:
            # httpx's and requests' errors have no common base but Exception.
            if self._is_refusal(error):
                raise self._refused(error) from error
            if spare is not None:
                return spare
            # The cache's "not found" wraps what really happened.
            first = error.__cause__ if isinstance(error.__cause__, Exception) else error
            reason = f"downloading it failed: {type(first).__name__}: {_line(first)}"
            if isinstance(error, self._errors.OfflineModeIsEnabled):
                reason = "offline mode is on (HF_HUB_OFFLINE)"
            raise self._absent(folder, lacking, reason) from error

    def _cached(self) -> Path | None:
        """The snapshot's directory in the cache, whole or not."""
        try:
            # Ignoring every file asks for the directory without a look at what is in it.
            found = self._hub.snapshot_download(
                self.repo, revision=self.revision, local_files_only=True, ignore_patterns="*"
            )
        except self._errors.LocalEntryNotFoundError:
            return None
        return Path(found)

    def _lacking(self, folder: Path) -> Wanted:
        """What the snapshot in ``folder`` lacks."""
        listed = self._listed()
        wanted = guess(folder) if listed is None else self._choose(listed, folder)
        return wanted.lacking(folder)

    def _listed(self) -> list[str] | None:
        """Names of the repository's files, if the cache knows them."""
        # huggingface_hub keeps listings since version 2.
        listing = getattr(self._hub, "get_cached_repo_tree", None)
        if listing is None:
            return None
        try:
            return [file.path for file in listing(self.repo, revision=self.revision)]
        except self._errors.CachedRepoTreeNotFoundError:
            return None

    def _choose(self, names: list[str], folder: Path | None) -> Wanted:
        return choose(self.text, self.repo, names, folder)

    def _download(self, folder: Path | None, progress: Progress | None) -> Path:
        hub = self._hub
        info = hub.HfApi().model_info(self.repo, revision=self.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if INDEX in sizes:
            # It names the shards; everything else that looks like a shard is left there.
            folder = self._fetch([INDEX], _bar(hub, None, 0))
        wanted = self._choose(list(sizes), folder)
        lacking = wanted if folder is None else wanted.lacking(folder)
        total = sum(sizes[name] for name in (*lacking.weights, *lacking.others))
        names = [*wanted.weights, *wanted.others]
        snapshot = self._fetch(names, _bar(hub, progress, total))
        lacking = wanted.lacking(snapshot)
        if lacking:
            raise CheckpointError(
                f"{self.text}: the downloaded snapshot {snapshot} lacks "
                f"{(*lacking.weights, *lacking.others)[0]!r}: the repository changed meanwhile, "
                "or the hub was lost; run the command again"
            )
        return snapshot

    def _fetch(self, names: list[str], bar: Any) -> Path:
        """The snapshot with the files ``names`` in it."""
        found = self._hub.snapshot_download(
            self.repo,
            revision=self.revision,
            allow_patterns=[glob.escape(name) for name in names],
            tqdm_class=bar,
        )
        return Path(found)

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the hub answered, and the answer was no."""
        kinds = (
            self._errors.RepositoryNotFoundError,  # Gated repositories, too.
            self._errors.RevisionNotFoundError,
            self._errors.DisabledRepoError,
        )
        response = getattr(error, "response", None)
        return isinstance(error, kinds) or getattr(response, "status_code", 0) in (401, 403)

    def _refused(self, error: Exception) -> CheckpointError:
        page = f"{self._hub.constants.ENDPOINT}/{self.repo}"
        if isinstance(error, self._errors.RevisionNotFoundError):
            reason = (
                f"{self.repo} is on the hub, but has no revision {self.revision or 'main'!r}; "
                f"see {page}/tree/main for its branches and tags"
            )
        elif isinstance(error, self._errors.GatedRepoError):
            reason = (
                f"a gated repository; accept its licence at {page}, log in with `hf auth login`, "
                "then run the command again"
            )
        elif isinstance(error, self._errors.RepositoryNotFoundError):
            reason = (
                "no such file or directory here, and no such repository on the hub at "
                f"{page}; check the spelling; for a private one log in with `hf auth login`"
            )
        else:
            reason = (
                f"the hub refused access to {page}: {_line(error)}; "
                "check the token with `hf auth whoami`"
            )
        return CheckpointError(f"{self.text}: {reason}")

    def _absent(self, folder: Path | None, lacking: Wanted, reason: str) -> CheckpointError:
        """The error for what is neither in the cache nor to be had."""
        state = "no such file or directory here, and not in the hub's cache"
        if folder is not None:
            more = f" and {len(lacking.weights) - 1} more" if len(lacking.weights) > 1 else ""
            state = f"only a part is in the hub's cache: {folder} lacks {lacking.weights[0]}{more}"
        command = f"hf download {self.repo}"
        command += f" --revision {self.revision}" if self.revision else ""
        return CheckpointError(
            f"{self.text}: {state}; {reason}; check the spelling, or get it where there is a "
            f"network with `{command}`"
        )


def _bar(hub: Any, progress: Progress | None, total: int) -> Any:
    """A class of progress bars that draws nothing and tells ``progress`` of bytes."""
    base: Any = hub.utils.tqdm
    lock = threading.Lock()
    done = 0

    class Bar(base):  # type: ignore[misc]
        monitor_interval = 0  # No thread beside it.

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def display(self, *_args: Any, **_kwargs: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> Any:
            nonlocal done
            # Files arrive on several threads, and bars count bytes or files.
            with lock:
                shown = super().update(n)
                if progress is not None and getattr(self, "unit", "") == "B":
                    done = min(max(done, int(self.n)), total)
                    progress(done, total)
            return shown

    return Bar


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
