"""A stand-in for the Hugging Face hub on 127.0.0.1: as much of it as `datasets` asks for.

It serves files from a folder `<root>/<owner>/<name>/<revision>/…`; the revision is "main" or "refs/convert/parquet".
"""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

RESOLVE = re.compile(r"^/datasets/([^/]+/[^/]+)/resolve/(.+?)/((?:[^/]+/)*[^/]+)$")
API = re.compile(r"^/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?$")
REVISIONS = {"main": "a" * 40, "refs/convert/parquet": "b" * 40}


class HubStandIn(ThreadingHTTPServer):
    """Serves the folder `root`; `requests` holds every request line, for the test to look at."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubStandIn:
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def folder(self, repository: str, revision: str) -> tuple[Path, str] | None:
        """The folder of a revision (a name or a commit) and its commit."""
        for name, commit in REVISIONS.items():
            if unquote(revision) in (name, commit):
                folder = self.root / repository / name
                return (folder, commit) if folder.is_dir() else None
        return None


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(body=True, posted=self.rfile.read(length))

    def _answer(self, body: bool, posted: bytes = b"") -> None:
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {unquote(self.path)}")
        resolve, api = RESOLVE.match(unquote(url.path)), API.match(unquote(url.path))
        if resolve:
            self._file(*resolve.groups(), body=body)
        elif api:
            self._api(api.group(1), api.group(2), api.group(3) or "main", parse_qs(url.query), posted)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, repository: str, revision: str, name: str, body: bool) -> None:
        # the pattern cannot know where "refs/convert/parquet" ends
        for known in REVISIONS:
            if f"{revision}/{name}".startswith(f"{known}/"):
                revision, name = known, f"{revision}/{name}"[len(known) + 1 :]
        found = self.server.folder(repository, revision)
        if found is None:
            code = "RevisionNotFound" if (self.server.root / repository).is_dir() else "RepoNotFound"
            return self._send(404, b"", {"X-Error-Code": code})
        folder, commit = found
        path = folder / name
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        return self._send(200, content, headers, body=body)

    def _api(
        self, repository: str, what: str | None, revision: str, query: dict[str, list[str]], posted: bytes
    ) -> None:
        inside = ""
        for known in [*REVISIONS, *REVISIONS.values()]:
            if revision == known or revision.startswith(f"{known}/"):
                revision, inside = known, revision[len(known) + 1 :]
                break
        found = self.server.folder(repository, revision)
        if found is None:
            code = "RevisionNotFound" if (self.server.root / repository).is_dir() else "RepoNotFound"
            return self._send(404, b'{"error": "not found"}', {"X-Error-Code": code})
        folder, commit = found
        if what == "tree":
            start = folder / inside
            if not start.is_dir():
                return self._send(404, b'{"error": "not found"}', {"X-Error-Code": "EntryNotFound"})
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            paths = sorted(start.rglob("*") if recursive else start.iterdir())
            return self._json([_entry(path, folder) for path in paths])
        if what == "paths-info":
            try:
                wanted = json.loads(posted)["paths"]
            except json.JSONDecodeError:
                wanted = parse_qs(posted.decode()).get("paths", [])
            wanted = [wanted] if isinstance(wanted, str) else wanted
            return self._json([_entry(folder / path, folder) for path in wanted if (folder / path).exists()])
        siblings = [
            {"rfilename": path.relative_to(folder).as_posix()} for path in sorted(folder.rglob("*")) if path.is_file()
        ]
        return self._json({"id": repository, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: Path, folder: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    content = path.read_bytes()
    return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}
