"""A stand-in for the Hugging Face hub: takes what its client uploads, and keeps it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants


class Hub(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else self._chunks()
        kept = self.server.kept
        kept["tokens"].add(self.headers.get("Authorization"))
        if self.server.refuse:
            self._answer(403, {"error": "you may not write here"})
        elif self.path == "/api/repos/create":
            kept["repo"] = json.loads(body)
            self._answer(200, {"url": f"{self.server.address}/owner/name"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer(200, {"files": [{"path": name, **modes} for name in names]})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    kept["files"][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            done = {"commitUrl": f"{self.server.address}/owner/name/commit/abc", "commitOid": "abc", "success": True}
            self._answer(200, done)
        else:
            self._answer(200, {})

    def do_GET(self):
        self._answer(200, {"id": "owner/name", "sha": "abc", "siblings": []})

    def _chunks(self):
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    """Return the server that export uploads to, with a token and without HF_HUB_OFFLINE."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.kept, server.refuse = {"files": {}, "repo": None, "tokens": set()}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lit_debias.export.hub.HfApi", lambda: HfApi(server.address, token="hf_secret"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
