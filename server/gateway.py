"""The public endpoint: checks what the engines do not check or refuse in their own ways, then passes bytes through.

llama-server answers 200 to unknown models, reads any body, cuts its streams at SIGTERM, and serves one model a process.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from aiohttp import web

from server.door import Door
from server.engine import ServedModel
from server.errors import TOO_LONG, ApiError, from_engine
from server.keys import KeyRing
from server.metrics import EngineState, RequestCounts, labelled
from server.openapi import description
from server.release import Release, Releases
from server.stream import CLIENT_GONE, EVENTS, EventStream
from server.supervise import Engine
from server.upstream import BrokenOff, NoAnswer, Reply
from server.validation import TOKEN_LIMIT_FIELDS, Limits, check_request, parse_body, written

BODY_TIMEOUT_S = 30.0
METRICS_TIMEOUT_S = 3.0  # below the patience of a scraper: one engine that hangs must not hide the others
MAX_ERROR_BYTES = 1 << 16
REQUEST_ID = re.compile(r"^[\w.:-]{1,64}$", re.ASCII)
PASSED = ("/v1/chat/completions", "/v1/completions")
OPEN = ("/health", "/ready", "/metrics", "/openapi.json")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Gateway:
    """Routes requests by model name to the engines."""

    def __init__(self, releases: Releases, keys: KeyRing, door: Door) -> None:
        self._releases = releases
        self._limits: Limits = releases.current.plan.limits  # the same options hold for every run
        self._keys = keys
        self._door = door
        self._counts = RequestCounts()
        self._started = int(time.time())
        self._routes = self.routes()
        self.draining = False

    def routes(self) -> dict[str, dict[str, Handler]]:
        """What answers each method of each path."""
        asked = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/v1/models": self._models,
            "/openapi.json": self._describe,
        }
        found: dict[str, dict[str, Handler]] = {path: {"GET": one, "HEAD": one} for path, one in asked.items()}
        return found | {path: {"POST": self._pass_on} for path in PASSED}

    def server(self, **options: Any) -> web.Server:
        """aiohttp's server below its applications, whose routing and middleware cost a first token some 0.1 ms
        (docs/benchmarks.md#what-the-gateway-adds-to-a-request). `options` are of its connections.
        """
        return web.Server(self._outermost, request_factory=self._request, **options)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop, most = asyncio.get_running_loop(), self._limits.body_bytes
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=most)

    async def _outermost(self, request: web.BaseRequest) -> web.StreamResponse:
        """Request id, key, error shape, counters, access log (never prompts)."""
        began, given = time.monotonic(), request.headers.get("x-request-id", "")
        request["id"] = given if REQUEST_ID.match(given) else os.urandom(16).hex()
        request["model"], request["run"], request["key"], status = "-", "-", None, CLIENT_GONE
        try:
            response = await self._answered(request)
            status = response.status
            if not response.prepared:
                response.headers["x-request-id"] = request["id"]
            return response
        finally:
            if request.path not in OPEN:
                self._finished(request, status, time.monotonic() - began)

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler's answer; every refusal as a document."""
        try:
            self._admit(request)
            handler = self._handler(request)
            await _go_on(request)
            return await handler(request)
        except ApiError as refusal:
            return _refused(refusal)
        except web.HTTPRequestEntityTooLarge:
            return _refused(ApiError(413, f"The body is larger than {self._limits.body_bytes} bytes."))
        except Exception:  # a bug: the operator gets the traceback, the client the usual shape
            traceback.print_exc()
            return _refused(ApiError(500, "The server failed at this request."))

    def _handler(self, request: web.BaseRequest) -> Handler:
        methods = self._routes.get(request.path)
        if methods is None:
            raise ApiError(404, f"{request.method} {request.path}: Not Found. {_KNOWN}")
        if request.method not in methods:
            message = f"{request.method} {request.path}: Method Not Allowed. {_KNOWN}"
            raise ApiError(405, message, headers={"Allow": ",".join(methods)})
        return methods[request.method]

    def _admit(self, request: web.BaseRequest) -> None:
        if request.path in OPEN:
            return
        if self._keys.is_empty:
            return
        request["key"] = self._keys.find(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if request["key"] is None:
            raise ApiError(401, "No valid API key: send it as 'Authorization: Bearer KEY'.", "invalid_api_key")

    def _finished(self, request: web.BaseRequest, status: int, seconds: float) -> None:
        self._counts.add(request["model"], request["run"], status, seconds)
        key = request["key"].name if request["key"] else "-"
        line = f"{request['id']} key={key} {request.method} {request.path!r} model={request['model']}"
        sys.stderr.write(f"{line} run={request['run']} {status} {seconds:.3f}s\n")  # print would write the end apart

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.BaseRequest) -> web.Response:
        current, coming = self._releases.current, self._releases.coming
        waiting = current.why_not_ready | ({"server": "shutting down"} if self.draining else {})
        status = {"status": "not ready", "why": waiting} if waiting else {"status": "ready", "run": current.id}
        if coming:
            status["starting"] = coming.id
        return web.json_response(status, status=503 if waiting else 200)

    async def _models(self, _: web.BaseRequest) -> web.Response:
        names = (self._releases.current.id, "tuned", "base")
        rows = [{"id": name, "object": "model", "created": self._started, "owned_by": "tuneship"} for name in names]
        return web.json_response({"object": "list", "data": rows})

    async def _describe(self, _: web.BaseRequest) -> web.Response:
        return web.json_response(description(self._limits, needs_key=not self._keys.is_empty))

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        engines = self._releases.engines
        texts = await asyncio.gather(*(engine.metrics(METRICS_TIMEOUT_S) for engine in engines))
        states = [EngineState.of(engine, text) for engine, text in zip(engines, texts, strict=True)]
        own = self._counts.text(states, self._releases.switches, self._limits.slots)
        return web.Response(text=labelled(states) + own, content_type="text/plain", charset="utf-8")

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        body = parse_body(await _body(request))
        release, key = self._releases.current, request["key"]
        with ExitStack() as around:
            around.enter_context(self._door.at_work(request))
            around.enter_context(release.answering())
            if key:
                around.enter_context(self._keys.quota(key).spending())
            return await self._answer(request, body, release)

    async def _answer(self, request: web.BaseRequest, body: dict[str, Any], release: Release) -> web.StreamResponse:
        model, engine = _engine_for(body.get("model"), release)
        request["model"], request["run"] = model.role, model.id
        check_request(body, self._limits, is_chat=request.path.endswith("/chat/completions"))
        # a client's own slot could be one at work for another client
        wish = {name: value for name, value in body.items() if name != "id_slot"} | {"model": model.names[0]}
        with engine.seats.taking(), engine.slots.taking(body) as slot:
            wish |= slot
            if not slot and (wait_s := engine.slots.wait_s()):
                await asyncio.sleep(wait_s)
            try:
                return await self._asked_twice(request, engine, wish)
            except ApiError as refusal:
                if refusal.code != TOO_LONG or not any(wish.get(name) for name in TOKEN_LIMIT_FIELDS):
                    raise
            # vLLM 0.26 also refuses a limit above what the prompt leaves of the context, which llama.cpp and vLLM 0.32
            # take for the most there can be: that is what no limit means to it
            unlimited = {name: value for name, value in wish.items() if name not in TOKEN_LIMIT_FIELDS}
            return await self._asked_twice(request, engine, unlimited | {"max_tokens": None})

    async def _asked_twice(self, request: web.BaseRequest, engine: Engine, wish: dict[str, Any]) -> web.StreamResponse:
        # what was checked is what the engine reads: written anew, so that no second reading of the bytes can differ
        data = written(wish)
        for is_last in (False, True):
            try:
                async with engine.upstream.asked(request.path, data) as reply:
                    stream = EventStream(request, reply, engine) if wish.get("stream") else None
                    await reply.begins()
                    return await _relay(reply, engine, stream)
            except (NoAnswer, BrokenOff) as error:
                # llama.cpp closes a connection that says nothing for 5 s, which happens when thousands of clients
                # keep this process busy between connecting and sending, or in the moment when a request comes for one
                # that waited for it. The client has nothing yet: ask again
                if is_last or isinstance(error, BrokenOff):
                    why = engine.why_not_ready or error
                    raise ApiError(503, f"The engine does not answer: {why}.") from None
        raise AssertionError("the last attempt returns or raises")


def _engine_for(name: object, release: Release) -> tuple[ServedModel, Engine]:
    found = release.find("tuned" if name is None else name) if isinstance(name, str | None) else None
    if found is None:
        raise ApiError(404, f"There is no model {name!r} here. /v1/models lists them.", "model_not_found", "model")
    return found


async def _go_on(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body."""
    match request.headers.get("Expect", "").lower():
        case "":
            pass
        case "100-continue" if request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        case other:
            raise ApiError(417, f"Expect: {other} is not known here.")


async def _body(request: web.BaseRequest) -> bytes:
    if request.content.is_eof():  # it came with the head
        return await request.read()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None


async def _relay(reply: Reply, engine: Engine, stream: EventStream | None) -> web.StreamResponse:
    """The engine's answer; a stream as its bytes come."""
    if reply.status != 200:
        raise from_engine(reply.status, await reply.read(MAX_ERROR_BYTES))
    if stream and reply.content_type == EVENTS:
        await stream.passed_on()
        return stream
    body = await reply.read()
    engine.last_output_at = time.monotonic()
    return web.Response(body=body, content_type=reply.content_type)


def _refused(refusal: ApiError) -> web.Response:
    return web.json_response(refusal.document(), status=refusal.status, headers=refusal.headers())


_KNOWN = "This server has GET /v1/models, POST /v1/chat/completions and POST /v1/completions."
