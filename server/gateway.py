"""The public endpoint: checks what llama.cpp's server does not check, then passes bytes through.

llama-server answers 200 to unknown models, reads any body, cuts its streams at SIGTERM, and serves one model a process.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Mapping

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web
from aiohttp.typedefs import Handler

from server.errors import ApiError, from_engine
from server.metrics import RequestCounts, labelled
from server.supervise import Engine
from server.validation import Limits, check_request, parse_body

BODY_TIMEOUT_S = 30.0
CLIENT_GONE = 499  # nginx's code; only the log and the counters see it
MAX_ERROR_BYTES = 1 << 16
REQUEST_ID = re.compile(r"^[\w.:-]{1,64}$", re.ASCII)
NO_LIMIT = ClientTimeout(total=None, sock_connect=5)
PASSED = ("/v1/chat/completions", "/v1/completions")
OPEN = ("/health", "/ready", "/metrics")


class Gateway:
    """Routes requests by model name to the engines."""

    def __init__(
        self, run_id: str, engines: list[Engine], keys: Mapping[str, str], limits: Limits, session: ClientSession
    ) -> None:
        self._run_id = run_id
        self._limits = limits
        self._engines = engines
        self._by_name = {name: engine for engine in engines for name in engine.plan.names}
        self._keys = keys
        self._session = session
        self._counts = RequestCounts()
        self._started = int(time.time())
        self.draining = False

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(middlewares=[self._outermost], client_max_size=self._limits.body_bytes)
        application.router.add_get("/health", self._health)
        application.router.add_get("/ready", self._ready)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/v1/models", self._models)
        for path in PASSED:
            application.router.add_post(path, self._pass_on)
        return application

    @web.middleware
    async def _outermost(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Request id, key, error shape, counters, access log (never prompts)."""
        began, given = time.monotonic(), request.headers.get("x-request-id", "")
        request["id"] = given if REQUEST_ID.match(given) else uuid.uuid4().hex
        request["model"], request["key"], status = "-", "-", CLIENT_GONE
        try:
            response = await self._answered(request, handler)
            status = response.status
            if not response.prepared:
                response.headers["x-request-id"] = request["id"]
            return response
        finally:
            if request.path not in OPEN:
                self._finished(request, status, time.monotonic() - began)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The handler's answer; every refusal as a document."""
        try:
            self._admit(request)
            return await handler(request)
        except ApiError as refusal:
            return _refused(refusal)
        except web.HTTPRequestEntityTooLarge:
            return _refused(ApiError(413, f"The body is larger than {self._limits.body_bytes} bytes."))
        except web.HTTPException as refusal:
            return _refused(ApiError(refusal.status, f"{request.method} {request.path}: {refusal.reason}. {_KNOWN}"))
        except Exception:  # a bug: the operator gets the traceback, the client the usual shape
            traceback.print_exc()
            return _refused(ApiError(500, "The server failed at this request."))

    def _admit(self, request: web.Request) -> None:
        if request.path in OPEN:
            return
        if self.draining:
            raise ApiError(503, "The server is shutting down.")
        if not self._keys:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogateescape")
        # every key is compared, in constant time each, so that the time says nothing about the keys
        named = [name for name, key in self._keys.items() if hmac.compare_digest(key.encode(), given)]
        if not named:
            raise ApiError(401, "No valid API key: send it as 'Authorization: Bearer KEY'.", "invalid_api_key")
        request["key"] = named[0]

    def _finished(self, request: web.Request, status: int, seconds: float) -> None:
        self._counts.add(request["model"], status, seconds)
        line = f"{request['id']} key={request['key']} {request.method} {request.path!r} model={request['model']}"
        print(f"{line} {status} {seconds:.3f}s", file=sys.stderr, flush=True)

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
        body = parse_body(await _body(request))
        engine = self._engine_for(body.get("model"))
        request["model"] = engine.plan.role
        check_request(body, self._limits, is_chat=request.path.endswith("/chat/completions"))
        headers = {"Authorization": f"Bearer {engine.plan.api_key}", "Content-Type": "application/json"}
        # what was checked is what the engine reads: written anew, so that no second reading of the bytes can differ
        data = json.dumps(body).encode()
        try:
            async with self._session.post(
                engine.plan.url + request.path, data=data, headers=headers, timeout=NO_LIMIT
            ) as reply:
                return await _relay(request, reply, engine)
        except (ClientError, OSError) as error:
            why = engine.why_not_ready or type(error).__name__
            raise ApiError(503, f"The engine does not answer: {why}.") from None

    def _engine_for(self, name: object) -> Engine:
        engine = self._by_name.get("tuned" if name is None else name) if isinstance(name, str | None) else None
        if engine is None:
            raise ApiError(404, f"There is no model {name!r} here. /v1/models lists them.", "model_not_found", "model")
        return engine


async def _body(request: web.Request) -> bytes:
    try:
        return await asyncio.wait_for(request.read(), BODY_TIMEOUT_S)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None


async def _relay(request: web.Request, reply: ClientResponse, engine: Engine) -> web.StreamResponse:
    """The engine's answer; a stream as its bytes come."""
    if reply.status != 200:
        raise from_engine(reply.status, await reply.content.read(MAX_ERROR_BYTES))
    if reply.content_type != "text/event-stream":
        body = await reply.read()
        engine.last_output_at = time.monotonic()
        return web.Response(body=body, content_type=reply.content_type)
    headers = {"x-request-id": request["id"], "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    response.content_type = reply.content_type
    await response.prepare(request)
    try:
        async for piece in reply.content.iter_any():
            engine.last_output_at = time.monotonic()
            await response.write(piece)
    except (ClientError, OSError):
        if request.transport is None or request.transport.is_closing():
            raise ApiError(CLIENT_GONE, "The client went away.") from None
        # never end silently: the text so far would look complete
        fault = ApiError(502, "The engine broke off.").document()
        await response.write(f"data: {json.dumps(fault)}\n\n".encode())
    await response.write_eof()
    return response


def _refused(refusal: ApiError) -> web.Response:
    return web.json_response(refusal.document(), status=refusal.status, headers=refusal.headers())


_KNOWN = "This server has GET /v1/models, POST /v1/chat/completions and POST /v1/completions."
