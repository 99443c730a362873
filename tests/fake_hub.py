"""A hub on 127.0.0.1: the few endpoints that huggingface_hub's snapshot download calls."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Files at one commit. ``error`` is what the hub answers instead: its X-Error-Code."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    error: str = ""

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class FakeHub:
    """``url`` is the endpoint; ``requests`` are (method, path) so far; ``broken`` files fail."""

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def downloaded(self) -> list[str]:
        """Names of the files that were fetched."""
        return sorted(
            p.rpartition("/")[2] for m, p in self.requests if m == "GET" and "/resolve/" in p
        )


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        repo = hub.repos.get(f"{owner}/{name}")
        if repo is None:
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repo.error:
            return self._answer(403, b"", {"X-Error-Code": repo.error})
        kind = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in (*repo.revisions, repo.sha):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if kind == "resolve":
            return self._file(hub, repo, "/".join(rest[2:]), body=body)
        found = _tree(repo) if kind == "tree" else _info(f"{owner}/{name}", repo)
        return self._answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _file(self, hub: FakeHub, repo: Repo, name: str, *, body: bool) -> None:
        if name in hub.broken:
            return self._answer(410, b"", {})
        if name not in repo.files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = repo.files[name]
        headers = {"X-Repo-Commit": repo.sha, "ETag": f'"{_oid(data)}"'}
        return self._answer(200, data, headers, body=body)

    def _answer(
        self, code: int, data: bytes, headers: dict[str, str], *, body: bool = True
    ) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree(repo: Repo) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
        for name, data in sorted(repo.files.items())
    ]


def _info(repo_id: str, repo: Repo) -> dict[str, Any]:
    siblings = [
        {"rfilename": name, "size": len(data), "blobId": _oid(data)}
        for name, data in sorted(repo.files.items())
    ]
    return {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": repo.sha, "siblings": siblings}
