"""A stand-in for the Hugging Face Hub on loopback, with the parts of its API that huggingface_hub uses for models.

Large files go through Git LFS, as on the Hub: there, suffixes such as .safetensors and .onnx choose it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
LFS = (".safetensors", ".onnx", ".pt2")
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories in memory. Writing needs the token, and so does reading of a private repository."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.private: dict[str, bool] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.commits: dict[str, Files] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: Callable[[_Handler, str], bool] = lambda handler, path: False
        """Answers a request in another way and returns True, or returns False."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repository: str, branch: str, files: Files) -> str:
        """Make `branch` point to a commit of these files, and return the commit's hash."""
        record = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        commit = hashlib.sha1(json.dumps([repository, branch, record]).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[repository, branch] = commit
        return commit

    def files(self, repository: str, branch: str = "main") -> Files:
        return self.commits[self.branches[repository, branch]]


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.fault(self, path):
            return None
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return answer(self, *match.groups())
        return self._send(404, {"error": f"the stand-in does not know {self.command} {path}"})

    def _send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may(self, repository: str, write: bool = False) -> bool:
        """Answer with an error, and return False, if the repository is not there for this user."""
        private = self.server.private.get(repository)
        if private is None or ((private or write) and not self._owner):
            status = 404 if self._owner else 401
            self._send(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _commit_of(self, repository: str, revision: str) -> str | None:
        """Return a commit. Answer with an error, and return None, if there is none."""
        if not self._may(repository):
            return None
        commit = self.server.branches.get((repository, revision), revision)
        if commit not in self.server.commits:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def create(self) -> None:
        wanted = json.loads(self._body)
        repository = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if not self._owner:
            return self._send(401, {"error": "Invalid username or password."})
        if wanted.get("organization") == "others":
            return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        if repository in self.server.private:
            address = f"{self.server.address}/{repository}"
            return self._send(409, {"error": "You already created this model repo", "url": address})
        self.server.private[repository] = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.add(repository, "main", {".gitattributes": b""})
        return self._send(200, {"url": f"{self.server.address}/{repository}", "name": repository, "id": "1"})

    def branch(self, repository: str, name: str) -> None:
        if not self._may(repository, write=True):
            return None
        if (repository, name) in self.server.branches:
            return self._send(409, {"error": "Reference already exists"})
        self.server.branches[repository, name] = self.server.branches[repository, "main"]
        return self._send(200, {})

    def validate(self) -> None:
        import yaml

        front = yaml.safe_load(json.loads(self._body)["content"].split("---\n")[1])
        wrong = [
            {"message": f"{name} is {front.get(name)!r}"}
            for name, kind in (("license", str), ("library_name", str), ("pipeline_tag", str), ("tags", list))
            if not isinstance(front.get(name), kind)
        ]
        self._send(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def preupload(self, repository: str, revision: str) -> None:
        if self._may(repository, write=True):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self._body)["files"]
            ]
            self._send(200, {"files": files})

    def lfs_batch(self, repository: str) -> None:
        if self._may(repository, write=True):
            wanted = json.loads(self._body)["objects"]
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.address}/lfs/{item['oid']}"}}} for item in wanted
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            return self._send(400, {"error": "not the object of this name"})
        self.server.objects[oid] = self._body
        return self._send(200, {})

    def commit(self, repository: str, revision: str) -> None:
        if self._commit_of(repository, revision) is None or not self._may(repository, write=True):
            return
        files = dict(self.server.files(repository, revision))
        for line in map(json.loads, self._body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.add(repository, revision, files)
        address = f"{self.server.address}/{repository}/commit/{commit}"
        self._send(200, {"success": True, "commitUrl": address, "commitOid": commit})

    def info(self, repository: str, revision: str | None) -> None:
        commit = self._commit_of(repository, revision or "main")
        if commit is not None:
            files = self.server.commits[commit].items()
            sized = "blobs=" in self.path  # the Hub tells sizes only if it is asked to
            siblings = [{"rfilename": name, **({"size": len(data)} if sized else {})} for name, data in files]
            private = self.server.private[repository]
            named = {"id": repository, "modelId": repository, "private": private}
            self._send(200, {**named, "sha": commit, "siblings": siblings})

    def tree(self, repository: str, revision: str) -> None:
        commit = self._commit_of(repository, revision)
        if commit is not None:
            entries = [_entry(name, data) for name, data in self.server.commits[commit].items()]
            self._send(200, entries)

    def resolve(self, repository: str, revision: str, name: str) -> None:
        commit = self._commit_of(repository, revision)
        if commit is None:
            return None
        data = self.server.commits[commit].get(name)
        if data is None:
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        entry = _entry(name, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        return self._send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


_REPOSITORY = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), rf"/api/models/{_REPOSITORY}/branch/(.+)", _Handler.branch),
    (("POST",), rf"/api/models/{_REPOSITORY}/preupload/(.+)", _Handler.preupload),
    (("POST",), rf"/api/models/{_REPOSITORY}/commit/(.+)", _Handler.commit),
    (("POST",), rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    (("GET",), rf"/api/models/{_REPOSITORY}(?:/revision/(.+))?", _Handler.info),
    (("GET",), rf"/api/models/{_REPOSITORY}/tree/([^/]+)", _Handler.tree),
    (("GET", "HEAD"), rf"/{_REPOSITORY}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
