"""A stand-in of the hub: as much of its HTTP interface as pushing and loading a model needs, kept in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """The uploads that the server has received.

    Args:
        url: where it listens.
        repos: repository -> path -> content, as of the last commit.
        private: repositories that were made private.
        messages: of the commits.
        large: sha256 -> content of the files that go as large ones.
        asked: every request, as "METHOD path".
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def commit(self, repo: str) -> str:
        """A name of the state of a repository, as git would give one."""
        content = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in self.repos[repo].items()})
        return hashlib.sha1(content.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        self._resolve(body=True)

    def do_PUT(self) -> None:
        data = self._body()
        oid = urlsplit(self.path).path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.large[oid] = data
        self._answer(200)

    def do_POST(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer(
                200, {"transfer": "basic", "objects": [self._slot(o) for o in json.loads(body)["objects"]]}
            )
        _, _, _, user, name, action, revision = path.split("/")
        assert revision == "main"
        if action == "preupload":
            modes = [self._mode(file["path"]) for file in json.loads(body)["files"]]
            return self._answer(200, {"files": modes})
        assert action == "commit"
        return self._commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])

    def _body(self) -> bytes:
        self.hub.asked.append(f"{self.command} {urlsplit(self.path).path}")
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if asked.get("visibility") == "private" or asked.get("private"):  # newer and older clients
            self.hub.private.add(repo)
        code = 409 if repo in self.hub.repos else 200
        self.hub.repos.setdefault(repo, {})
        self._answer(code, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _slot(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.hub.url}/upload/{asked['oid']}", "header": {}}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                self.hub.repos[repo][value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.commit(repo)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, *, body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        user, name, _, revision, path = (*self.path.strip("/").split("/", 4), *[""] * 5)[:5]
        files = self.hub.repos.get(f"{user}/{name}")
        known = files is not None and revision in ("main", self.hub.commit(f"{user}/{name}"))
        if files is None or not known or path not in files:
            kind = "RepoNotFound" if files is None else "EntryNotFound" if known else "RevisionNotFound"
            return self._answer(404, {"error": kind}, {"X-Error-Code": kind}, body=body)
        data = files[path]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.hub.commit(f"{user}/{name}")}
        return self._answer(200, data, headers, body=body)

    def _answer(self, code: int, value: Any = b"", headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine, for as long as the block lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
