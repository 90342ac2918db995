"""Stand-in for the HTTP API of the Hugging Face Hub: the requests that huggingface_hub makes for model repositories."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
LARGE = ".safetensors"
"""Files with this ending are stored by the large file protocol, as on the Hub."""


def blob_id(content: bytes) -> str:
    """Return git's digest of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubRepository:
    """A model repository: its commits, each with all its files, and its branches."""

    private: bool = True
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        """Make a commit of `main`, and return its ID."""
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha], self.refs["main"] = files, sha
        self.messages.append(message)
        return sha


class HubServer(ThreadingHTTPServer):
    """The server, its repositories, and a log of its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, HubRepository] = {}
        self.objects: dict[str, bytes] = {}  # uploaded large files by SHA-256
        self.requests: list[str] = []
        self.refused: dict[str, int] = {}  # status by a pattern of "METHOD path"
        self.reason = "refused by the test"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, directory: Path, *, private: bool = False) -> str:
        """Store a directory as a repository, and return the commit."""
        files = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault(name, HubRepository(private))
        return repository.commit(files)


class Handler(BaseHTTPRequestHandler):
    """Answer one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def send(self, status: int, content: bytes | Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self) -> None:
        # Phase: read the request, which must not stay in the connection.
        quoted = urlsplit(self.path).path  # revisions with slashes are quoted
        path = unquote(quoted)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {path}")
        for pattern, status in self.server.refused.items():
            if re.search(pattern, f"{self.command} {path}"):
                return self.send(status, {"error": self.server.reason}, X_Error_Message=self.server.reason)

        # Phase: requests about no repository.
        if path == "/api/validate-yaml":
            assert "license" in json.loads(body)["content"]
            return self.send(200, {"errors": [], "warnings": []})
        if path.startswith("/objects/"):
            self.server.objects[path.rpartition("/")[2]] = body
            return self.send(200)
        if path == "/api/repos/create":
            return self.create(json.loads(body))

        # Phase: requests about one repository.
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(.*))?$", quoted)
        repository = self.server.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not self.authorized):
            return self.send(401 if not self.authorized else 404, {"error": "?"}, X_Error_Code="RepoNotFound")
        return self.about(found[1], repository, found[2] or "", body)

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.authorized:
            return self.send(401, {"error": "Invalid username or password."})
        if name in self.server.repositories:
            return self.send(409, {"error": "You already created it", "url": f"{self.server.endpoint}/{name}"})
        self.server.repositories[name] = HubRepository(private=asked.get("visibility") == "private")
        self.server.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs"})
        return self.send(200, {"url": f"{self.server.endpoint}/{name}", "name": name})

    def about(self, name: str, repository: HubRepository, rest: str, body: bytes) -> None:
        """Answer a request about a repository."""
        # Phase: writing.
        if rest == "info/lfs/objects/batch":
            objects = [{**one, "actions": self.action(one["oid"])} for one in json.loads(body)["objects"]]
            return self.send(200, {"transfer": "basic", "objects": objects})
        if rest.startswith("preupload/"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if p.endswith(LARGE) else "regular"} for p in asked]
            return self.send(200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if rest.startswith("commit/"):
            return self.commit(name, repository, body)

        # Phase: reading one revision.
        kind, revision, path = ([unquote(part) for part in rest.split("/", 2)] + ["", "", ""])[:3]
        sha = repository.refs.get(revision or "main", revision)
        if sha not in repository.commits:
            return self.send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = repository.commits[sha]
        if kind == "tree":
            return self.send(200, [self.entry(path, files[path]) for path in sorted(files)])
        if kind == "resolve":
            return self.file(sha, files, path)
        siblings = [{"rfilename": path} for path in files]
        return self.send(200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def action(self, oid: str) -> dict[str, Any]:
        return {"upload": {"href": f"{self.server.endpoint}/objects/{oid}"}}

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def file(self, sha: str, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        large = path.endswith(LARGE)
        etag = hashlib.sha256(files[path]).hexdigest() if large else blob_id(files[path])
        return self.send(200, files[path], ETag=f'"{etag}"', X_Repo_Commit=sha)

    def commit(self, name: str, repository: HubRepository, body: bytes) -> None:
        if not self.authorized:
            return self.send(403, {"error": "Forbidden"})
        files, message = dict(repository.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                assert item["key"] == "deletedFile", item
                del files[value["path"]]
        sha = repository.commit(files, message)
        address = f"{self.server.endpoint}/{name}/commit/{sha}"
        return self.send(200, {"success": True, "commitOid": sha, "commitUrl": address})


@contextlib.contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run the server in a thread during a `with` block."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
