"""A server on this machine that speaks the protocol of chat completions and answers by a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """``script`` says how each further request is answered, in the words of the handler."""

    daemon_threads = True

    def __init__(self, handler: type[ChatHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.script: list[Any] = []
        self.requests: list[Any] = []
        self.most = self.busy = 0
        self.together = threading.Barrier(1)  # so many requests are answered at a time
        self.patience = threading.Event()  # what is slow waits for it
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class ChatHandler(BaseHTTPRequestHandler):
    """Takes a step of the script for each request; a subclass knows what it means. "slow" is 503, much later."""

    server: ChatServer
    default: Any = 200

    def reply(self, step: Any, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        """Return status, headers and text."""
        raise NotImplementedError

    def noted(self, body: dict[str, Any]) -> Any:
        """Return what is kept of a request."""
        return self.headers["Authorization"], body

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
            self.server.requests.append(self.noted(body))
            step = self.server.script.pop(0) if self.server.script else self.default
        if step == "slow":
            self.server.patience.wait(timeout=20)
            step = 503
        self.server.together.wait(timeout=20)
        status, headers, text = self.reply(step, body)
        with self.server.lock:
            self.server.busy -= 1
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())
        except ConnectionError:
            pass  # the client has hung up

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(handler: type[ChatHandler]) -> Iterator[ChatServer]:
    """Serve within the context."""
    with ChatServer(handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.patience.set()
        server.shutdown()
