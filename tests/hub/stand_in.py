"""A stand-in for the hub on 127.0.0.1 that takes uploads: repositories with commits, branches, owners and tokens.

It answers what huggingface_hub asks when it creates a repository, commits files (small ones in the commit, others by
the LFS protocol before it), lists and downloads them, with the statuses and error codes of the real one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from tests.backbones.hub_stand_in import Handler, Hub

OWNER_TOKEN = "hf_owner"
STRANGER_TOKEN = "hf_stranger"
USERS = {OWNER_TOKEN: "me", STRANGER_TOKEN: "stranger"}
LFS = (".safetensors", ".npy", ".bin", ".pt")  # what the real hub's default .gitattributes names


@dataclass
class Repository:
    """A repository of the user "me".

    Args:
        private: others see that there is none.
        commits: a commit's hash -> its files.
        branches: a branch's name -> its commit, the newest last.
    """

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Makes a commit of all the files that there are then."""
        text = repr((sorted(files.items()), len(self.commits)))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        """Returns the commit of a branch or of a hash."""
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit on the main branch."""
        return self.commits[self.branches["main"]]


class UploadHandler(Handler):
    server: UploadHub

    def do_POST(self) -> None:  # noqa: N802
        self._take()

    def do_PUT(self) -> None:  # noqa: N802
        self._take()

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.split("?")[0])
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        if self.server.down or (self.server.failing and re.search(self.server.failing, request)):
            return self._send(503, b"")
        if self.command == "PUT":
            self.server.objects[path.rsplit("/", 1)[1]] = body
            return self._send(200, b"", {"ETag": '"etag"'})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body)) if self._may_write(found[1]) else None
        if path == "/lfs/verify":
            asked = json.loads(body)
            whole = hashlib.sha256(self.server.objects.get(asked["oid"], b"")).hexdigest() == asked["oid"]
            return self._json({}) if whole else self._send(422, b'{"error": "not there"}')
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path):
            name, what, revision = found.groups()
            if self._may_write(name):
                getattr(self, f"_{what}")(name, revision, body)
            return None
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            return self._branch(*found.groups()) if self._may_write(found[1]) else None
        return self._send(404, b"{}")

    @property
    def _user(self) -> str | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _create(self, asked: dict[str, Any]) -> None:
        if self._user is None:
            return self._error(401, "Invalid username or password.")
        name = f"{asked['organization'] or self._user}/{asked['name']}"
        if name.split("/")[0] != self._user:
            return self._error(403, f'You don\'t have the rights to create a model under the namespace "{name}"')
        if name in self.server.kept:
            text = {"error": "You already created this model repo", "url": f"{self.server.endpoint}/{name}"}
            return self._send(409, json.dumps(text).encode(), {"Content-Type": "application/json"})
        made = self.server.kept[name] = Repository(private=asked.get("visibility") == "private")
        made.commit(
            {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, message="initial commit"
        )
        return self._json({"url": f"{self.server.endpoint}/{name}", "name": name})

    def _validate(self, card: str) -> None:
        """Refuses front matter as the real one does: YAML that is none, and a base model that cannot be an id."""
        errors = []
        try:
            matter = yaml.safe_load(card.split("---\n")[1])
        except (yaml.YAMLError, IndexError) as error:
            matter, errors = {}, [{"message": str(error)}]
        matter = matter or {}
        if "base_model" in matter and not re.fullmatch(r"[\w.-]+/[\w.-]+", matter["base_model"]):
            errors.append({"message": f'"base_model" with value "{matter["base_model"]}" is not valid.'})
        content = json.dumps({"errors": errors, "warnings": []}).encode()
        return self._send(400 if errors else 200, content, {"Content-Type": "application/json"})

    def _may_write(self, name: str) -> bool:
        repository = self.server.kept.get(name)
        if repository is None or (repository.private and self._user != "me"):
            self._error(404 if self._user else 401, "Repository not found", "RepoNotFound")
        elif self._user != "me":
            self._error(403, "Forbidden: you need write access to the repository")
        else:
            return True
        return False

    def _branch(self, name: str, branch: str) -> None:
        branches = self.server.kept[name].branches
        if branch in branches:
            return self._error(409, f"Reference {branch} exists already")
        branches[branch] = branches["main"]
        return self._json({})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        repository = self.server.kept[name]
        there = repository.commits[repository.branches.get(revision, repository.branches["main"])]
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": answers})

    def _batch(self, asked: dict[str, Any]) -> None:
        to = self.server.endpoint
        actions = {
            "upload": lambda oid: {"href": f"{to}/lfs/{oid}"},
            "verify": lambda oid: {"href": f"{to}/lfs/verify"},
        }
        objects = [
            {**one, **({} if one["oid"] in self.server.objects else {"actions": _made(actions, one["oid"])})}
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        repository = self.server.kept[name]
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        before = repository.branches.get(revision)
        if before is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if header.get("parentCommit", before) != before:
            return self._error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[before])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files, revision, header["summary"])
        return self._json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}"}
        )

    # --- reading

    def _visible(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """Returns a repository and the commit of a revision; answers with the error where there is none."""
        repository = self.server.kept.get(name)
        if repository is None or (repository.private and self._user != "me"):
            self._error(404 if self._user else 401, "Repository not found", "RepoNotFound")
            return None
        commit = repository.find(unquote(revision))
        if commit is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repository, commit

    def _file(self, repository: str, name: str) -> None:
        if repository not in self.server.kept:
            return super()._file(repository, name)
        revision = self.path.split("?")[0].split("/")[4]
        found = self._visible(repository, revision)
        if found is None:
            return None
        content = found[0].commits[found[1]].get(unquote(name))
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[1]})
        if self.server.failing and re.search(self.server.failing, f"{self.command} {self.path}"):
            return self._send(503, b"")
        headers = {"ETag": f'"{_oid(name, content)}"', "X-Repo-Commit": found[1], "Accept-Ranges": "bytes"}
        return self._send(200, content, headers)

    def _api(self, repository: str, rest: list[str]) -> None:
        if repository not in self.server.kept and repository in self.server.repositories:
            return super()._api(repository, rest)
        found = self._visible(repository, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return None
        kept, commit = found
        files = kept.commits[commit]
        if rest[:1] == ["tree"]:
            sizes = self.server.claimed_sizes
            return self._json([_entry(name, content, sizes.get(name)) for name, content in sorted(files.items())])
        if rest[:1] == ["refs"]:
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in kept.branches.items()]
            return self._json({"branches": branches, "converts": [], "tags": []})
        siblings = [{"rfilename": name} for name in sorted(files)]
        return self._json({"id": repository, "sha": commit, "private": kept.private, "tags": [], "siblings": siblings})

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), headers | ({"X-Error-Code": code} if code else {}))


class UploadHub(Hub):
    """A hub with repositories of the user "me", who has the token `OWNER_TOKEN`.

    Args:
        repositories: hub id -> folder, for what is only read (backbones).
    """

    handler = UploadHandler

    def __init__(self, repositories: dict[str, Path] | None = None) -> None:
        super().__init__(repositories or {})
        self.kept: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.failing = ""  # a pattern of requests that are answered with 503
        self.claimed_sizes: dict[str, int] = {}  # what the list of files says, where it is not the truth


def _made(actions: dict[str, Any], oid: str) -> dict[str, Any]:
    return {name: make(oid) for name, make in actions.items()}


def _oid(name: str, content: bytes) -> str:
    """The hash by which the hub knows a file's content: git's for small ones, SHA-256 for LFS."""
    if name.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes, size: int | None) -> dict[str, Any]:
    size = len(content) if size is None else size
    entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(content).hexdigest()}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": _oid(name, content), "size": size, "pointerSize": 130}
    return entry
