"""A stand-in of the Hugging Face hub: the part of its HTTP API that huggingface_hub speaks to share a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standin"


class Hub:
    """Repositories in memory: their files by commit, and the requests that came."""

    def __init__(self) -> None:
        self.url = ""
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []

    def oid(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision names, and its files."""
        commits = self.commits.get(repository, [])
        for number in range(len(commits) - 1, -1, -1):
            if revision in ("main", self.oid(repository, number)):
                return self.oid(repository, number), commits[number]
        return None

    def commit(self, repository: str, body: bytes) -> str:
        files = dict(self.commits[repository][-1]) if self.commits[repository] else {}
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.commits[repository].append(files)
        return self.oid(repository, len(self.commits[repository]) - 1)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        hub, path, body = self.hub, self.path.partition("?")[0], self.body()
        hub.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.commits.setdefault(name, [])
            self.reply(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self.reply(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([\w/-]+)/preupload/main", path):
            kinds = {True: "lfs", False: "regular"}
            found = [
                {"path": f["path"], "uploadMode": kinds[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.reply(200, {"files": found})
        elif match := re.fullmatch(r"/([\w/-]+)\.git/info/lfs/objects/batch", path):
            found = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            kind = "application/vnd.git-lfs+json"
            self.reply(200, {"transfer": "basic", "objects": found}, Content_Type=kind)
        elif match := re.fullmatch(r"/api/models/([\w/-]+)/commit/main", path):
            oid = hub.commit(match[1], body)
            self.reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{match[1]}/commit/{oid}"})
        else:
            self.reply(404, {"error": f"no {path}"})

    def do_PUT(self) -> None:
        data, oid = self.body(), self.path.rpartition("/")[2]
        self.hub.requests.append("PUT")
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.reply(200)

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        match = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([\w-]+)/(.+)", path)
        found = hub.files(match[1], match[2]) if match else None
        if match is None or found is None:
            code = "RevisionNotFound" if match and match[1] in hub.commits else "RepoNotFound"
            self.reply(404, X_Error_Code=code, X_Error_Message="not found")
        elif match[3] not in found[1]:
            self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="not found", X_Repo_Commit=found[0])
        else:
            data = found[1][match[3]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.reply(200, data, ETag=etag, X_Repo_Commit=found[0], X_Linked_Size=str(len(data)))

    do_HEAD = do_GET


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub on the loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
