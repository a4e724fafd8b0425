"""A small model hub on this machine that speaks the API of huggingface_hub: models, resolve, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".safetensors", ".pth")  # kept apart from git, as hubs do with weights


class HubServer(ThreadingHTTPServer):
    """The hub. models: {owner/name: files by name}; a change of files needs a call of `commit`.

    token: what writing needs, and reading of the models in `private`. requests: 'METHOD path' of each request.
    spoiled: names of files of which other bytes are sent than stated.
    """

    daemon_threads = True

    def __init__(self, token: str = "hf_secrettoken") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: dict[str, str] = {}
        self.uploaded: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.spoiled: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, model: str, files: dict[str, bytes]) -> str:
        """Publish files; return the commit."""
        self.models[model] = {**self.models.get(model, {}), **files}
        digest = hashlib.sha1()
        for name, data in sorted(self.models[model].items()):
            digest.update(name.encode() + data)
        self.commits[model] = digest.hexdigest()
        return self.commits[model]

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def _get(self, body: bool) -> None:
        path = self._path()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3], body)
        elif match := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)", path):
            self._cdn(match[1], match[2], body)
        else:
            self._json(404, {"error": f"no route {path}"})

    def _path(self) -> str:
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _readable(self, model: str) -> bool:
        """Whether a model is there for this visitor; else answer as hubs do, which do not say which of both it is."""
        allowed = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if model not in self.server.models or (model in self.server.private and not allowed):
            self._json(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _has(self, model: str, revision: str | None) -> bool:
        if revision in (None, "main", self.server.commits[model]):
            return True
        self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return False

    def _info(self, model: str, revision: str | None) -> None:
        if not self._readable(model) or not self._has(model, revision):
            return
        siblings = []
        for name, data in self.server.models[model].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entry |= {"blobId": "0" * 40, "lfs": {"sha256": digest, "size": len(data), "pointerSize": 134}}
            siblings.append(entry)
        self._json(200, {"id": model, "modelId": model, "sha": self.server.commits[model], "siblings": siblings})

    def _resolve(self, model: str, revision: str, name: str, body: bool) -> None:
        if not self._readable(model) or not self._has(model, revision):
            return
        data = self.server.models[model].get(name)
        commit = {"X-Repo-Commit": self.server.commits[model]}
        if data is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **commit})
            return
        if name.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            other_host = self.server.address.replace("127.0.0.1", "localhost")  # large files come from elsewhere
            target = {"Location": f"{other_host}/cdn/{digest}/{name}"}
            self._send(302, b"", {**commit, **linked, **target}, body)
            return
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self._send(200, self._spoilt(name, data), {**commit, "ETag": f'"{blob}"'}, body)

    def _cdn(self, digest: str, name: str, body: bool) -> None:
        for files in self.server.models.values():
            for data in files.values():
                if hashlib.sha256(data).hexdigest() == digest:
                    self._send(200, self._spoilt(name, data), {"ETag": f'"{digest}"'}, body)
                    return
        self._json(404, {"error": "no such object"})

    def _spoilt(self, name: str, data: bytes) -> bytes:
        if name in self.server.spoiled:
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def do_PUT(self) -> None:
        self.server.uploaded[self._path().removeprefix("/upload/")] = self._body()
        self._send(200, b"", {"ETag": '"done"'})

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}" and "validate-yaml" not in path:
            self._json(401, {"error": "Invalid username or password."})
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            modes = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(LARGE) else "regular"
                modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
            self._json(200, {"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], body)
        else:
            self._json(404, {"error": f"no route {path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        model = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{model}", "name": model}
        if model in self.server.models:
            self._json(409, {"error": "You already created this model repo", **url})
            return
        self.server.put(model, {})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(model)
        self._json(200, url)

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            upload = {"href": f"{self.server.address}/upload/{item['oid']}", "header": {}}
            objects.append({**item, "actions": {"upload": upload}})
        self._json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, model: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        commit = self.server.put(model, files)
        url = f"{self.server.address}/{model}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url, "pullRequestUrl": None})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)
