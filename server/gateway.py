"""The public endpoint: checks what llama.cpp's server does not check, then passes bytes through.

llama-server answers 200 to unknown models, reads any body, cuts its streams at SIGTERM, and serves one model a process.
"""

from __future__ import annotations

import hmac
import json
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web

from server.metrics import RequestCounts, labelled
from server.supervise import Engine

MAX_BODY_BYTES = 1 << 20
MAX_TOKENS = 1 << 20
NO_LIMIT = ClientTimeout(total=None, sock_connect=5)
PASSED = ("/v1/chat/completions", "/v1/completions")
OPEN = ("/health", "/ready", "/metrics")


class Gateway:
    """Routes requests by model name to the engines."""

    def __init__(self, run_id: str, engines: list[Engine], keys: Mapping[str, str], session: ClientSession) -> None:
        self._run_id = run_id
        self._engines = engines
        self._by_name = {name: engine for engine in engines for name in engine.plan.names}
        self._keys = keys
        self._session = session
        self._counts = RequestCounts()
        self._started = int(time.time())
        self.draining = False

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(middlewares=[self._outermost], client_max_size=MAX_BODY_BYTES)
        application.router.add_get("/health", self._health)
        application.router.add_get("/ready", self._ready)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/v1/models", self._models)
        for path in PASSED:
            application.router.add_post(path, self._pass_on)
        return application

    @web.middleware
    async def _outermost(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Request id, key, error shape, counters, access log (never prompts)."""
        began, request["id"] = time.monotonic(), request.headers.get("x-request-id", uuid.uuid4().hex)[:64]
        request["model"], request["key"] = "-", "-"
        try:
            response = self._refusal(request) or await handler(request)
        except web.HTTPRequestEntityTooLarge:
            response = _error(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        except web.HTTPException as refusal:
            response = _error(refusal.status, f"{request.method} {request.path}: {refusal.reason}. {_KNOWN}")
        if not response.prepared:
            response.headers["x-request-id"] = request["id"]
        seconds = time.monotonic() - began
        if request.path not in OPEN:
            self._counts.add(request["model"], response.status, seconds)
            line = f"{request['id']} key={request['key']} {request.method} {request.path} model={request['model']}"
            print(f"{line} {response.status} {seconds:.3f}s", file=sys.stderr, flush=True)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.path in OPEN:
            return None
        if self.draining:
            return _error(503, "The server is shutting down.", "server_error")
        if not self._keys:
            return None
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        # every key is compared, in constant time each, so that the time says nothing about the keys
        named = [name for name, key in self._keys.items() if hmac.compare_digest(key.encode(), given)]
        if not named:
            return _error(401, "No valid API key: send it as 'Authorization: Bearer KEY'.", code="invalid_api_key")
        request["key"] = named[0]
        return None

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        waiting = {engine.plan.role: engine.why_not_ready for engine in self._engines if not engine.is_ready}
        if self.draining:
            waiting["server"] = "shutting down"
        status = {"status": "not ready", "why": waiting} if waiting else {"status": "ready", "run": self._run_id}
        return web.json_response(status, status=503 if waiting else 200)

    async def _models(self, _: web.Request) -> web.Response:
        names = (self._run_id, "tuned", "base")
        rows = [{"id": name, "object": "model", "created": self._started, "owned_by": "tuneship"} for name in names]
        return web.json_response({"object": "list", "data": rows})

    async def _metrics(self, _: web.Request) -> web.Response:
        texts = []
        for engine in self._engines:
            headers = {"Authorization": f"Bearer {engine.plan.api_key}"}
            try:
                async with self._session.get(f"{engine.plan.url}/metrics", headers=headers) as reply:
                    texts.append((engine.plan.role, await reply.text() if reply.status == 200 else ""))
            except (ClientError, OSError, TimeoutError):
                continue  # an engine that is down shows as tuneship_ready 0
        ready = {engine.plan.role: (engine.is_ready, engine.restarts) for engine in self._engines}
        text = labelled(texts, self._run_id) + self._counts.text(ready, self._run_id)
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wish, fault = _parsed(body)
        if fault:
            return fault
        name = wish.get("model", "tuned")
        engine = self._by_name.get(name) if isinstance(name, str) else None
        if engine is None:
            return _error(404, f"There is no model {name!r} here. /v1/models lists them.", code="model_not_found")
        request["model"] = engine.plan.role
        headers = {"Authorization": f"Bearer {engine.plan.api_key}", "Content-Type": "application/json"}
        try:
            async with self._session.post(
                engine.plan.url + request.path, data=body, headers=headers, timeout=NO_LIMIT
            ) as reply:
                return await _relay(request, reply)
        except (ClientError, OSError) as error:
            return _error(
                503,
                f"The engine does not answer ({type(error).__name__}): {engine.why_not_ready or 'busy'}.",
                "server_error",
            )


async def _relay(request: web.Request, reply: ClientResponse) -> web.StreamResponse:
    """Bytes as they come. A stream that the engine breaks off ends with an error event, never silently."""
    response = web.StreamResponse(status=reply.status, headers={"x-request-id": request["id"]})
    response.content_type = reply.content_type
    await response.prepare(request)
    try:
        async for piece in reply.content.iter_any():
            await response.write(piece)
    except ClientError:
        if reply.content_type != "text/event-stream":
            raise
        fault = {"error": {"message": "The engine broke off.", "type": "server_error", "code": None}}
        await response.write(f"data: {json.dumps(fault)}\n\n".encode())
    await response.write_eof()
    return response


def _parsed(body: bytes) -> tuple[dict[str, Any], web.Response | None]:
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError) as error:
        return {}, _error(400, f"The body is not JSON: {error}.")
    if not isinstance(wish, dict):
        return {}, _error(400, "The body is not a JSON object.")
    for name in ("max_tokens", "max_completion_tokens"):
        value = wish.get(name)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TOKENS
        ):
            return {}, _error(400, f"{name} is {value!r}; it must be a whole number from 1 to {MAX_TOKENS}.")
    return wish, None


_KNOWN = "This server has GET /v1/models, POST /v1/chat/completions and POST /v1/completions."


def _error(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> web.Response:
    """OpenAI's error shape."""
    return web.json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status=status)
