"""A small stand-in for the hub's HTTP interface: as much of it as pushing and fetching a prompt takes."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants

LFS = ".safetensors"  # what the hub stores beside git


@dataclass
class Repo:
    private: bool
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch, files):
        oid = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


class Hub(ThreadingHTTPServer):
    """Repositories in memory. Users log in with `tokens`; `fail` makes it answer everything with that status."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"}
        self.repos, self.blobs, self.asked, self.fail = {}, {}, [], None

    def add(self, name, files, **kind):
        """A repository with one commit."""
        self.repos[name] = Repo(**{"private": False, **kind})
        return self.repos[name].commit("main", files)


@contextmanager
def serving():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def ask_only(hub, monkeypatch, folder):
    """Let the hub's library in this process know no other hub, an empty cache in `folder`, and no login."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    settings = {
        "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hub"), "HF_TOKEN_PATH": str(folder / "token"), "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)


class Refused(Exception):
    """An answer that is no success: status, the hub's word for it, and a message."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self):
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.server.tokens.get(token)
        try:
            if self.server.fail:
                raise Refused(self.server.fail, "", "by design")
            if token and not self.user:
                raise Refused(401, "", "Invalid credentials in Authorization header")
            for method, pattern, route in ROUTES:
                if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                    return route(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
            raise Refused(404, "", "no such page")
        except Refused as refusal:
            status, code, message = refusal.args
            self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # ------------------------------------------------------------------------------------------------ what is there

    def repo(self, name):
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self.user != name.split("/")[0]):
            raise Refused(404 if self.user else 401, "RepoNotFound", "Repository not found")
        return repo

    def own_repo(self, name):
        repo = self.repo(name)
        if self.user != name.split("/")[0]:
            raise Refused(403, "", "you may not write here")
        return repo

    def commit(self, repo, revision):
        oid = repo.branches.get(revision or "main", revision)
        if oid not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def info(self, name, revision=""):
        repo = self.repo(name)
        oid = self.commit(repo, revision)
        files = [{"rfilename": path} for path in repo.commits[oid]]
        self.answer(200, {"id": name, "sha": oid, "private": repo.private, "gated": repo.gated, "siblings": files})

    def tree(self, name, revision):
        repo = self.repo(name)
        files = repo.commits[self.commit(repo, revision)]
        entries = []
        for path, content in files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.answer(200, entries)

    def resolve(self, name, revision, path):
        repo = self.repo(name)
        oid = self.commit(repo, revision)
        if repo.gated:
            raise Refused(403 if self.user else 401, "GatedRepo", "Access is restricted")
        content = repo.commits[oid].get(path)
        if content is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        tag = hashlib.sha256(content).hexdigest() if path.endswith(LFS) else blob_id(content)
        self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=oid)

    # ------------------------------------------------------------------------------------------------- what is sent

    def create(self):
        wanted = json.loads(self.body)
        if not self.user:
            raise Refused(401, "", "Invalid username or password.")
        name = f"{wanted['organization'] or self.user}/{wanted['name']}"
        if name.split("/")[0] != self.user:
            raise Refused(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.server.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        self.server.add(
            name, {".gitattributes": b""}, private=wanted.get("visibility") == "private" or wanted.get("private", False)
        )
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def branch(self, name, branch):
        repo = self.own_repo(name)
        if branch in repo.branches:
            raise Refused(409, "", "Reference already exists")
        repo.branches[branch] = self.commit(repo, "main")
        self.answer(200, {})

    def validate(self):
        content = json.loads(self.body)["content"]
        try:
            yaml.safe_load(content.split("---")[1])
        except yaml.YAMLError as error:
            return self.answer(400, {"errors": [{"message": str(error).splitlines()[0]}], "warnings": []})
        return self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name, revision):
        repo = self.own_repo(name)
        files = repo.commits[self.commit(repo, revision)]
        modes = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS) else "regular"
            known = files.get(file["path"])
            oid = None if known is None or mode == "lfs" else blob_id(known)
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": modes})

    def lfs_batch(self, name):
        self.own_repo(name)
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.server.url}/blobs/{entry['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put_blob(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self.answer(200)

    def post_commit(self, name, revision):
        repo = self.own_repo(name)
        files = dict(repo.commits[self.commit(repo, revision)])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                assert line["key"] == "header" and value["summary"]
        oid = repo.commit(revision or "main", files)
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})


def blob_id(content):
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/models/{NAME}(/revision/{REVISION})?", Handler.info),
    ("GET", f"/api/models/{NAME}/tree/{REVISION}", Handler.tree),
    ("POST", f"/api/models/{NAME}/branch/(?P<branch>[^/]+)", Handler.branch),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", Handler.post_commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/blobs/(?P<oid>[0-9a-f]+)", Handler.put_blob),
    ("GET", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
