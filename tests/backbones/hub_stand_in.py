"""A stand-in for the hub on 127.0.0.1, as far as loading a model goes: files with ETag and commit, and model info."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories.

    Args:
        repositories: hub id -> folder.
    """

    daemon_threads = True
    handler: type[Handler]

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.repositories = repositories
        self.requests: list[str] = []
        self.down = False  # then every answer is 503

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def serve(repositories: dict[str, Path]) -> AbstractContextManager[Hub]:
    """A hub in a thread of its own."""
    return running(Hub(repositories))


AnyHub = TypeVar("AnyHub", bound=Hub)


@contextmanager
def running(hub: AnyHub) -> Iterator[AnyHub]:
    """Lets a hub answer in a thread of its own."""
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.0"  # no connection outlives its answer, so a stopped server is silent

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        part = self.headers.get("Range")
        self.server.requests.append(f"{self.command} {path}{f' {part}' if part else ''}")
        parts = path.strip("/").split("/")
        if self.server.down:
            return self._send(503, b"")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        return self._send(404, b"")

    def _file(self, repository: str, name: str) -> None:
        folder = self.server.repositories.get(repository)
        if folder is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        file = folder / name
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            with file.open("rb") as opened:
                opened.seek(int(found[1]))
                return self._send(206, opened.read(int(found[2]) - int(found[1]) + 1), headers)
        state = file.stat()  # a file may be larger than the memory
        headers["ETag"] = f'"{hashlib.sha256(f"{file} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()}"'
        if self.command == "HEAD":
            return self._send(200, b"", headers, state.st_size)
        return self._send(200, file.read_bytes(), headers)

    def _api(self, repository: str, rest: list[str]) -> None:
        folder = self.server.repositories.get(repository)
        if folder is None:
            return self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        if rest[:1] == ["tree"]:
            under = "/".join(rest[2:])
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, file in zip(names, files, strict=True)
                if not under or name.startswith(f"{under}/")
            ]
            if under and not entries:
                return self._send(404, b'{"error": "not found"}', {"X-Error-Code": "EntryNotFound"})
            return self._json(entries)
        siblings = [{"rfilename": name} for name in names]
        return self._json({"id": repository, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


Hub.handler = Handler
