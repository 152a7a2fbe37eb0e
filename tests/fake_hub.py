"""As much of the Hugging Face Hub as uploads and downloads need, on loopback and in memory.

Models, data sets and Spaces are made, receive commits (small files in the commit, large ones through LFS) and are read
back file by file, so that `push`, `from_pretrained` and `load_dataset` run against it as they are. A process meets it
with [`environment`]; Xet, whose protocol is the Hub's own, is turned off there.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

#: The commit that everything is in: 40 hexadecimal digits, as the caches expect.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Files with these endings go through LFS, as the Hub's own `.gitattributes` has it.
_LARGE = (".safetensors", ".parquet", ".png", ".gif")
_KINDS = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass
class Repository:
    """One repository: what it was made with, what it holds, and the variables of a Space."""

    made_with: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


class FakeHub(ThreadingHTTPServer):
    """The server; `repositories` maps kind and id, `("model", "me/abm")`, to what was uploaded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.refuse = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process for which this is the Hub, with a cache of its own in `home`."""
        own = {"HF_ENDPOINT": self.address, "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        return {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | own


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A Hub for the length of a `with` block."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            self._resolve(path)
        else:
            self._json(*self._listing(path))

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.stored[self.path.rsplit("/", 1)[-1]] = self._body()
        self._json(200, {})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if self.server.refuse:
            self._json(403, {"error": "no"})
        elif path.endswith("/repos/create"):
            self._json(*self._create(json.loads(body)))
        elif path.endswith("/info/lfs/objects/batch"):
            self._json(200, self._lfs(json.loads(body)))
        elif "/preupload/" in path:
            self._json(200, {"files": [_upload_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif "/commit/" in path:
            self._commit(path, body)
        elif "/paths-info/" in path:
            files = self._repository(path)[1].files
            wanted = json.loads(body)["paths"]
            self._json(200, [_entry(name, files[name]) for name in wanted if name in files])
        elif path.endswith("/variables"):
            sent = json.loads(body)
            self._repository(path)[1].variables[sent["key"]] = sent["value"]
            self._json(200, {sent["key"]: {"value": sent["value"]}})
        else:  # such as the check of a card's metadata
            self._json(200, {"errors": [], "warnings": []})

    def _create(self, sent: dict[str, Any]) -> tuple[int, Any]:
        kind = sent.get("type") or "model"
        name = f"{sent['organization']}/{sent['name']}" if sent.get("organization") else sent["name"]
        status = 409 if (kind, name) in self.server.repositories else 200
        self.server.repositories.setdefault((kind, name), Repository(sent))
        return status, {"url": f"{self.server.address}/{_KINDS[kind]}{name}"}

    def _lfs(self, sent: dict[str, Any]) -> dict[str, Any]:
        for thing in sent["objects"]:
            thing["actions"] = {"upload": {"href": f"{self.server.address}/store/{thing['oid']}", "header": {}}}
        return {"transfer": "basic", "objects": sent["objects"]}

    def _commit(self, path: str, body: bytes) -> None:
        name, repository = self._repository(path)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                repository.files.pop(value["path"], None)
        self._json(200, {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _listing(self, path: str) -> tuple[int, Any]:
        """Of a repository as a whole, or of a folder in it."""
        name, repository = self._repository(path)
        if name is None:
            return 404, {"error": "Repository not found"}
        tree = re.search(r"/tree/[^/]+(?:/(.+))?$", path)
        if tree is None:
            siblings = [{"rfilename": file} for file in repository.files]
            return 200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": True, "tags": []}
        inside = f"{tree[1]}/" if tree[1] else ""
        found = [_entry(file, data) for file, data in repository.files.items() if file.startswith(inside)]
        folders = {parent for entry in found for parent in map(str, PurePosixPath(entry["path"]).parents)}
        found += [{"type": "directory", "path": path, "oid": COMMIT} for path in folders - {".", tree[1]}]
        if "recursive=true" not in self.path.lower():
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(inside)]
        return (200, found) if found or not inside else (404, {"error": "Entry not found"})

    def _resolve(self, path: str) -> None:
        """One file, with the headers from which the cache takes commit and content."""
        _, repository = self._repository(path)
        data = repository.files.get(path.split("/resolve/")[1].split("/", 1)[1]) if repository else None
        if data is None:
            missing = "EntryNotFound" if repository else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": missing, "X-Repo-Commit": COMMIT})
            return
        tag = hashlib.sha256(data).hexdigest()
        self._send(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"})

    def _repository(self, path: str) -> tuple[Any, Any]:
        """Id and repository that an address is about."""
        path = path.removeprefix("/api")
        kind = next((kind for kind, prefix in _KINDS.items() if prefix and path.startswith(f"/{prefix}")), "model")
        name = "/".join(path.removeprefix("/models").removeprefix(f"/{_KINDS[kind]}").strip("/").split("/")[:2])
        repository = self.server.repositories.get((kind, name))
        return (name, repository) if repository else (None, None)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _json(self, status: int, value: Any) -> None:
        # What is missing is told in a header.
        headers = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        self._send(status, json.dumps(value).encode(), headers | {"content-type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _upload_mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(_LARGE) else "regular", "shouldIgnore": False}


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
