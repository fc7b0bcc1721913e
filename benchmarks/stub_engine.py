#!/usr/bin/env python3
"""An engine of known timing: first token after --ttft-ms, then one every --itl-ms. Standard library only.

usage: benchmarks/stub_engine.py --ttft-ms 100 --itl-ms 10        prints its port; GET /measured says what it really did
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "stub"}


class Stub:
    """Serves chat completions and keeps the gaps between the tokens that it wrote."""

    def __init__(self, ttft_s: float, itl_s: float, text: str) -> None:
        self.ttft_s, self.itl_s, self.text = ttft_s, itl_s, text
        self.ttfts_s: list[float] = []
        self.gaps_s: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, any number of requests."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                length = [int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")]
                body = await reader.readexactly(length[0]) if length else b""
                began = time.perf_counter()  # no engine can begin before it has the whole request
                wish = json.loads(body) if path.endswith("/chat/completions") else {}
                if wish.get("stream"):
                    await self._stream(writer, wish, began)
                elif wish:
                    self._write(writer, {"choices": [], "usage": _usage(1, 1)})
                else:
                    self._answer(writer, path)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, wish: dict[str, object], began: float) -> None:
        tokens, last = int(str(wish.get("max_tokens") or wish["max_completion_tokens"])), began
        for number in range(tokens):
            due = began + self.ttft_s + number * self.itl_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            (self.gaps_s if number else self.ttfts_s).append(now - last)
            last = now
            if not number:
                writer.write(HEAD)  # with the first token, as llama.cpp has it
            self._event(writer, {"choices": [{"index": 0, "delta": {"content": self.text}, "finish_reason": None}]})
            if self.itl_s == 0:
                await writer.drain()
        self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        prompt = sum(len(str(turn["content"]).split()) for turn in wish["messages"])  # type: ignore[attr-defined]
        self._event(writer, {"choices": [], "usage": _usage(prompt, tokens)})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _event(self, writer: asyncio.StreamWriter, fields: dict[str, object]) -> None:
        data = b"data: " + json.dumps(CHUNK | fields).encode() + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _answer(self, writer: asyncio.StreamWriter, path: str) -> None:
        listed = {"object": "list", "data": [{"id": "stub", "object": "model", "created": 1, "owned_by": "stub"}]}
        measured = {"ttft_ms": [1000 * s for s in self.ttfts_s], "itl_ms": [1000 * s for s in self.gaps_s]}
        self._write(
            writer, measured if path == "/measured" else listed, "404 Not Found" if path == "/metrics" else "200 OK"
        )
        if path == "/measured":
            self.ttfts_s, self.gaps_s = [], []

    def _write(self, writer: asyncio.StreamWriter, document: dict[str, object], status: str = "200 OK") -> None:
        data = json.dumps(document).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)


def _usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ttft-ms", type=float, default=100)
    parser.add_argument("--itl-ms", type=float, default=10)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--text", default=" word", help="of each token")
    wish = parser.parse_args()
    stub = Stub(wish.ttft_ms / 1000, wish.itl_ms / 1000, wish.text)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", wish.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    # epoll counts in whole milliseconds, so that a connection at the wrong moment would put a token off by half of one
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main())
