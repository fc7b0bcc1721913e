"""Stands in for llama-server: does what a request says. usage: scripted_engine.py LOG [llama-server's flags]"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOO_LONG = "This model's maximum context length is 2048 tokens. However, you requested 2048 output tokens."


class Engine(BaseHTTPRequestHandler):
    """One request."""

    log: Path

    def do_GET(self) -> None:
        """Template and metrics: it has none."""
        self._answer(200, {})

    def do_POST(self) -> None:
        """Chat, as the last message asks for it."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wish, limit = body["messages"][-1]["content"], body.get("max_tokens")
        earlier = self.log.read_text() if self.log.exists() else ""
        with self.log.open("a") as log:
            log.write(f"{limit} {wish}\n")
        if wish == "refuse otherwise":
            self._answer(400, {"error": {"message": "There is no such grammar.", "type": "invalid_request_error"}})
        elif wish == "refuse always" or (wish == "refuse long ones" and limit):
            self._answer(400, {"error": {"message": TOO_LONG, "type": "BadRequestError"}})
        elif wish == "drop always" or (wish == "drop once" and wish not in earlier):
            self.close_connection = True
        else:
            text = "answered" if limit else "answered without a limit"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self._answer(200, {"choices": [choice], "usage": {"completion_tokens": 1}})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


if __name__ == "__main__":
    Engine.log = Path(sys.argv[1])
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Engine).serve_forever()
