"""What an engine answers, piece by piece, from engines that do what no real one can be made to do."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from aiohttp import ClientError, ClientSession, web

from server import gateway, stream
from server.engine import EnginePlan, Probes
from server.errors import ApiError
from server.upstream import BrokenOff, NoAnswer, Upstream
from tests.server.conftest import Served, free_port

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"x" * 1000
PIECES = 20_000  # of a flood
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    for number in range(PIECES):
        writer.write(chunk(PIECE + b"%d" % number))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def with_engine(answer: Answer, told: Callable[[Upstream], Awaitable[None]]) -> None:
    """`told` with the way to an engine that reads a request and leaves the connection to `answer`."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
            assert b"\r\nAuthorization: Bearer key\r\n" in head
            assert await reader.readexactly(2) == b"{}"
            await answer(reader, writer)
        finally:
            writer.close()

    async def both() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(20):
                await told(Upstream(plan(port)))
        finally:
            server.close()

    uvloop.run(both())


def plan(port: int) -> EnginePlan:
    nothing = Probes(re.compile(""), "", "", "")
    return EnginePlan((), port, "key", [], {}, nothing, 1.0)


def test_a_stream_waits_for_who_takes_it_and_loses_nothing() -> None:
    async def told(engine: Upstream) -> None:
        got: list[bytes] = []
        async with engine.asked("/v1/completions", b"{}") as reply:

            def take(piece: bytes) -> None:
                got.append(piece)
                if len(got) % 20 == 0:
                    reply.pause()

            reply.expect(stream.EVENTS, take)
            await reply.begins()
            assert (reply.status, reply.content_type) == (200, stream.EVENTS)
            halts = 0
            while not await reply.halted():
                halts += 1
                had = len(got)
                await asyncio.sleep(0.2)
                assert len(got) < had + 20, "it went on reading"
                reply.resume()
        assert halts
        assert b"".join(got) == b"".join(PIECE + b"%d" % number for number in range(PIECES))

    with_engine(flood, told)


def test_an_engine_that_says_nothing_may_be_asked_again() -> None:
    async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        pass

    async def told(engine: Upstream) -> None:
        with pytest.raises(NoAnswer, match="closed"):
            async with engine.asked("/v1/completions", b"{}") as reply:
                await reply.begins()
        with pytest.raises(NoAnswer, match="reached"):
            async with Upstream(plan(free_port())).asked("/v1/completions", b"{}"):
                pass

    with_engine(silent, told)


def test_what_comes_at_once_is_handed_on_at_once_and_the_end_is_known_with_it() -> None:
    async def brief(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b"one ") + chunk(b"two ") + chunk(b"three") + b"0\r\n\r\n")

    async def told(engine: Upstream) -> None:
        got: list[tuple[bytes, bool]] = []
        async with engine.asked("/v1/completions", b"{}") as reply:
            reply.expect(stream.EVENTS, lambda piece: got.append((piece, reply.is_whole)))
            assert await reply.halted()
        assert got == [(b"one two three", True)]

    with_engine(brief, told)


@pytest.mark.parametrize("rest", [b"", b"5\r\nab", b"no chunk"], ids=["between pieces", "in a piece", "no HTTP"])
def test_an_answer_that_breaks_off_is_told_with_what_came(rest: bytes) -> None:
    async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(PIECE))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(rest)

    async def told(engine: Upstream) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # "no HTTP" is logged
        got: list[bytes] = []
        async with engine.asked("/v1/completions", b"{}") as reply:
            reply.expect(stream.EVENTS, got.append)
            with pytest.raises(BrokenOff):
                await reply.halted()
        assert b"".join(got).startswith(PIECE)
        async with engine.asked("/v1/completions", b"{}") as reply:
            with pytest.raises(BrokenOff):
                await reply.read()

    with_engine(half, told)


def test_no_more_of_a_body_is_kept_than_was_asked_for() -> None:
    ended = asyncio.Event()

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"200", b"500"))
        try:
            while True:
                writer.write(chunk(PIECE))
                await writer.drain()
        except ConnectionError:
            ended.set()

    async def told(engine: Upstream) -> None:
        async with engine.asked("/v1/completions", b"{}") as reply:
            await reply.begins()
            assert reply.status == 500
            body = await reply.read(100_000)
        assert 100_000 < len(body) < 1_000_000
        await ended.wait()  # the connection is gone, and with it the engine's work

    with_engine(endless, told)


@pytest.mark.parametrize("reads_on", [True, False], ids=["slow", "never again"])
def test_a_client_that_reads_slowly_loses_nothing_and_one_that_stops_is_dropped(
    reads_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_at_work = SimpleNamespace(last_output_at=0.0)
    monkeypatch.setattr(stream, "UNREAD_S", 20.0 if reads_on else 0.3)

    async def told(engine: Upstream) -> None:
        refused: list[int] = []

        async def passed_on(request: web.BaseRequest) -> web.StreamResponse:
            request["id"] = "1"
            async with engine.asked("/v1/completions", b"{}") as reply:
                try:
                    events = stream.EventStream(request, reply, cast(Any, engine_at_work))
                    await reply.begins()
                    return await gateway._relay(reply, cast(Any, engine_at_work), events)
                except ApiError as refusal:
                    refused.append(refusal.status)
                    raise web.HTTPServiceUnavailable from None

        runner = web.ServerRunner(web.Server(passed_on))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port := free_port())
        await site.start()
        try:
            async with ClientSession(read_bufsize=1 << 12) as session, session.get(f"http://127.0.0.1:{port}/") as got:
                await asyncio.sleep(1)
                if reads_on:
                    whole = await got.read()
                    assert whole == b"".join(PIECE + b"%d" % number for number in range(PIECES))
                else:
                    with pytest.raises(ClientError):
                        await got.read()
        finally:
            await runner.cleanup()
        assert refused == ([] if reads_on else [stream.CLIENT_GONE])
        assert engine_at_work.last_output_at

    with_engine(flood, told)


def test_a_client_of_http_1_0_gets_no_chunks(served: Served) -> None:
    body = b'{"model": "tuned", "prompt": "Hello", "max_tokens": 4, "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", served.port), 20) as client:
        client.sendall(head + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    head, _, stream = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert stream.startswith(b"data: {") and stream.endswith(b"data: [DONE]\n\n")
    assert all(event.startswith(b"data: ") for event in stream.strip().split(b"\n\n"))


@pytest.mark.parametrize("closes", [False, True], ids=["kept", "closed when it said nothing"])
def test_a_connection_for_the_next_request_is_there_before_it(closes: bool) -> None:
    connections: list[str] = []  # what became of each

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        connections.append("opened")
        try:
            async with asyncio.timeout(0.2 if closes else None):
                await reader.readuntil(b"{}")
            connections[number] = "asked"
            writer.write(HEAD + chunk(PIECE) + b"0\r\n\r\n")
        except TimeoutError:
            connections[number] = "closed"
        except asyncio.IncompleteReadError:
            connections[number] = "left"
        writer.close()

    async def both() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        engine = Upstream(plan(server.sockets[0].getsockname()[1]))
        async with asyncio.timeout(20), server:
            for asked in range(1, 4):
                async with engine.asked("/v1/completions", b"{}") as reply:
                    assert await reply.read() == PIECE
                await asyncio.sleep(0.05)
                assert connections == ["asked"] * asked + ["opened"]
            await asyncio.sleep(0.4)
            async with engine.asked("/v1/completions", b"{}") as reply:
                assert await reply.read() == PIECE
            await asyncio.sleep(0.05)
            assert connections == ["asked"] * 3 + ["closed"] * closes + ["asked", "opened"]

    uvloop.run(both())


def test_a_connection_that_is_closed_when_it_is_used_is_no_answer_and_the_next_one_is_new() -> None:
    connections = 0

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        is_second = connections == 2
        await reader.readuntil(b"{}")
        if not is_second:
            writer.write(HEAD + chunk(PIECE) + b"0\r\n\r\n")
        writer.close()

    async def both() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        engine = Upstream(plan(server.sockets[0].getsockname()[1]))

        async def told() -> bytes:
            async with engine.asked("/v1/completions", b"{}") as reply:
                await reply.begins()
                return await reply.read()

        async with asyncio.timeout(20), server:
            assert await told() == PIECE
            await asyncio.sleep(0.05)
            with pytest.raises(NoAnswer, match="closed"):
                await told()
            assert await told() == PIECE

    uvloop.run(both())


def test_only_a_good_answer_of_the_expected_type_is_a_stream() -> None:
    kinds = {b"200": b"application/json", b"500": b"text/event-stream"}
    answers = iter(kinds.items())

    async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status, kind = next(answers)
        writer.write(HEAD.replace(b"200", status).replace(b"Text/Event-Stream", kind) + chunk(PIECE) + b"0\r\n\r\n")

    async def told(engine: Upstream) -> None:
        for _ in kinds:
            poured: list[bytes] = []
            async with engine.asked("/v1/completions", b"{}") as reply:
                reply.expect(stream.EVENTS, poured.append)
                await reply.begins()
                assert await reply.read() == PIECE
            assert not poured

    with_engine(other, told)


def test_a_stream_has_the_requests_id_and_leaves_the_connection_open(served: Served) -> None:
    body = b'{"model": "tuned", "prompt": "Hello", "max_tokens": 4, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nX-Request-Id: mine\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with socket.create_connection(("127.0.0.1", served.port), 20) as client:
        for _ in range(2):
            client.sendall(head + body)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                piece = client.recv(65536)
                assert piece, answer
                answer += piece
            head_of_answer, _, events = answer.partition(b"\r\n\r\n")
            lines = head_of_answer.lower().split(b"\r\n")
            assert lines[0] == b"http/1.1 200 ok"
            assert {b"x-request-id: mine", b"transfer-encoding: chunked", b"cache-control: no-store"} <= set(lines)
            assert not any(line.startswith(b"connection:") for line in lines)
            assert b"data: {" in events and b"data: [DONE]" in events
        client.sendall(head.replace(b"Host: here", b"Host: here\r\nConnection: close") + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        assert b"\r\nConnection: close\r\n" in answer and answer.endswith(b"0\r\n\r\n")
