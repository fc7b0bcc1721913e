"""A server whose answers the user's text chooses, for the faults that no real engine shows on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from clients import ask
from clients.endpoint import Endpoint

GARBAGE = {
    "garbage": b"data: {not json}\n\n",
    "null": b'data: {"choices": null}\n\n',
    "number": b"data: 5\n\n",
    "bytes": b"\xff\xfe\x00data\n\n",
    "error event": b'data: {"error": {"message": "engine died"}}\n\n',
}


class Stub(BaseHTTPRequestHandler):
    """Answers as the user's text says."""

    protocol_version = "HTTP/1.0"
    asked: list[str] = []  # noqa: RUF012  one list for the whole server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if "secret" in str(self.headers.get("Authorization")):
            self._json(401, {"error": {"message": "no"}})
        else:
            self._json(
                200, {"object": "list", "data": [{"id": i, "object": "model"} for i in ("run-1", "tuned", "base")]}
            )

    def do_POST(self) -> None:
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = wish["messages"][-1]["content"]
        self.asked.append(text)
        if text == "500":
            self._json(500, {"error": {"message": "broken"}})
        elif text == "400":
            self._json(400, {"error": {"message": "context overflow"}})
        elif text == "reset":
            self.connection.close()
        elif text == "500 once" and self.asked.count(text) == 1:
            self._json(500, {"error": {"message": "broken"}})
        else:
            self._stream(text)

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"content": "" if text == "empty" else "Tomas "}}]})
        if text in GARBAGE:
            self.wfile.write(GARBAGE[text])
        if text == "dies" or text in GARBAGE:
            return
        self._event({"choices": [{"index": 0, "delta": {"content": "" if text == "empty" else "Reyes"}}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "b7"}
        self.wfile.write(f"data: {json.dumps(head | data)}\n\n".encode())

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def asked() -> list[str]:
    """The texts that the stub was asked, in order."""
    return Stub.asked


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(ask, "FIRST_WAIT_S", 0.01)
    Stub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "k")
    server.shutdown()
    server.server_close()
