"""The endpoint under abuse: it goes on answering, refuses with 4xx, keeps its memory, logs neither keys nor prompts.

TUNESHIP_TEST_LONG=1 makes the crowds as large as the files that this process may open allow, and waits for time limits.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import resource
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelstore import Store
from server.door import KEEPALIVE_S
from server.gateway import BODY_TIMEOUT_S
from tests.server.conftest import Served, serving, until

KEY, WRONG, SECRET = "key-of-alice-4711", "key-of-mallory-0815", "xyzzy-private"
LONG = os.environ.get("TUNESHIP_TEST_LONG") == "1"
CONTEXT = 2048
QUESTION = {"messages": [{"role": "user", "content": f"Say {SECRET}."}], "max_tokens": 2, "model": "tuned"}


@pytest.fixture(scope="module")
def attacked(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key. The short version has fewer files than the crowd has connections."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice {KEY}\n")
    with serving(store, "--api-key-file", str(keys), timeout_s=120, most_files=0 if LONG else 3000) as running:
        yield running
    for word in (KEY, WRONG, SECRET, "Traceback"):
        assert word not in running.log


def ask(served: Served, body: dict[str, Any] | bytes, key: str = KEY, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and document of one chat request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    wish = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **headers}
    request = urllib.request.Request(f"{served.url}/v1/chat/completions", data, wish)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def resident_mb(served: Served) -> float:
    """Memory of the gateway."""
    pages = int(Path(f"/proc/{served.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def working(served: Served) -> float:
    """Requests that the engines compute or keep waiting."""
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    names = ("tuneship_requests_running{", "tuneship_requests_waiting{")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


@contextmanager
def unharmed(served: Served) -> Iterator[None]:
    """Meanwhile good requests are answered by the same engines; afterwards the slots are free."""
    engines, over, seen = served.engines(), threading.Event(), Counter[str]()

    def keep_asking() -> None:
        while not over.is_set() or not seen:
            status, document = ask(served, QUESTION)
            seen["good" if status == 200 else f"{status} {document}"] += 1
            over.wait(0.1)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join(150)
    assert set(seen) == {"good"}, f"{seen} {served.log[-3000:]}"
    assert served.engines() == engines
    until(lambda: working(served) == 0, 90)


def connected(served: Served, data: bytes = b"", receive_buffer: int = 0) -> socket.socket:
    """A connection that has sent `data`."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(120)
    client.connect(("127.0.0.1", served.port))
    client.sendall(data)
    return client


def http(body: bytes, *headers: str, method: str = "POST", key: str = KEY, length: int | None = None) -> bytes:
    """A request as bytes."""
    lines = [f"{method} /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *headers]
    if not any(line.lower().startswith(("transfer-encoding", "content-length")) for line in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def status_of(client: socket.socket) -> int:
    """Of the answer that comes; 0 when the connection is closed without one."""
    try:
        words = client.recv(1 << 16).split(b" ", 2)
    except ConnectionError:
        return 0
    return int(words[1]) if len(words) > 1 else 0


def crowd_size() -> int:
    """More than the short version's server can hold; 10,000 in the long one if this process may open so many."""
    if not LONG:
        return 1500
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return 10_000 if most == resource.RLIM_INFINITY else min(10_000, most - 500)


def test_a_crowd_of_silent_and_slow_connections(attacked: Served) -> None:
    size, half_a_request = crowd_size(), b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: "
    grown = []
    for _ in range(3):
        with unharmed(attacked), ExitStack() as all_of_them:
            clients = [all_of_them.enter_context(connected(attacked, half_a_request * (n % 2))) for n in range(size)]
            for client in clients[-100:]:  # the newest still have their place
                client.sendall(b"a")
            grown.append(resident_mb(attacked))
    print(f"{size} connections: resident MB of the gateway after each crowd {[round(mb, 1) for mb in grown]}")
    assert grown[2] < 1.1 * grown[0] + 10  # a second and third crowd find the memory of the first


def test_clients_that_vanish_free_their_slots(attacked: Served) -> None:
    wish = json.dumps(QUESTION | {"stream": True, "max_tokens": 1500, "ignore_eos": True}).encode()
    with unharmed(attacked):
        for _ in range(3 if LONG else 1):
            clients = [connected(attacked, http(wish)) for _ in range(8)]
            assert {status_of(client) for client in clients} == {200}
            for client in clients:  # a reset, as from a machine that was switched off
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()


def test_slow_readers_do_not_keep_slots(attacked: Served) -> None:
    wish = json.dumps(QUESTION | {"stream": True, "max_tokens": 30, "ignore_eos": True}).encode()
    with ExitStack() as all_of_them:
        for _ in range(40 if LONG else 6):
            all_of_them.enter_context(connected(attacked, http(wish), receive_buffer=2048))
        with unharmed(attacked):
            pass  # what they asked for is computed, though nobody reads it


def test_large_and_long_requests(attacked: Served) -> None:
    large = json.dumps({"messages": [{"role": "user", "content": SECRET * (5_000_000 // len(SECRET))}]}).encode()
    too_long = {"messages": [{"role": "user", "content": "word " * 9000}]}
    bomb = gzip.compress(b" " * 50_000_000, 1)
    # no length is stated
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
    before = resident_mb(attacked)
    with unharmed(attacked):
        for _ in range(20 if LONG else 1):
            assert ask(attacked, large)[0] == 413
            assert ask(attacked, bomb, **{"Content-Encoding": "gzip"})[0] == 413
            status, document = ask(attacked, too_long)
            assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
            with connected(attacked) as client:
                client.sendall(http(chunks, "Transfer-Encoding: chunked"))
                assert status_of(client) == 413
    assert resident_mb(attacked) < before + 40


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "min_p": 1e999}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": -1}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1e400}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": -0.1}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "n": 0}',
        b'{"messages": {"role": "user"}}',
        b'{"messages": [{"role": "user", "content": "Hi"}',
        b'{"a":' * 50_000,
        b"\x00" * 1000,
    ],
    ids=range(12),
)
def test_bodies_that_are_refused(attacked: Served, body: bytes) -> None:
    status, document = ask(attacked, body)
    assert status == 400
    assert set(document["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "raw",
    [
        http(b"", *(f"X-Flood-{n}: 1" for n in range(5000))),
        http(b"", "X-Flood: " + "a" * 1_000_000),
        http(b"", f"Authorization Bearer {KEY}"),
        http(b"", f"X-Key: {KEY}\x00"),
        http(b"", "Content-Length: -5"),
        http(b"", "Content-Length: 5", "Content-Length: 6"),
        http(f"{SECRET}\r\n".encode(), "Transfer-Encoding: chunked"),
        http(b"", method="\x16\x03\x01"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=range(11),
)
def test_what_is_no_http_is_refused(attacked: Served, raw: bytes) -> None:
    with connected(attacked) as client:
        try:
            client.sendall(raw)
        except ConnectionError:
            return  # refused while it was still sending
        assert status_of(client) in (0, 400)


def test_a_body_is_called_for_once_its_head_is_accepted(attacked: Served) -> None:
    body = json.dumps(QUESTION).encode()
    with connected(attacked, http(b"", "Expect: 100-continue", length=len(body))) as client:
        assert status_of(client) == 100
        client.sendall(body)
        assert status_of(client) == 200
    for headers, key, status in ((["Expect: more"], KEY, 417), (["Expect: 100-continue"], WRONG, 401)):
        with connected(attacked, http(b"", *headers, key=key, length=len(body))) as client:
            assert status_of(client) == status


def test_garbage_behind_a_good_request(attacked: Served) -> None:
    good = http(json.dumps(QUESTION).encode())
    with unharmed(attacked), connected(attacked) as client:
        client.sendall(good)
        assert status_of(client) == 200
        client.sendall(b"\x00garbage\r\n\r\n" + good * 3)
        received = b""
        while piece := client.recv(1 << 16):
            received += piece
        assert b" 400 Bad Request" in received
        assert received.count(b"HTTP/1.") == 1  # what follows garbage is not read


def test_wrong_keys_at_a_high_rate(attacked: Served) -> None:
    async def guess(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
        for turn in range(200 if LONG else 25):
            writer.write(http(b"{}", key=f"{WRONG}-{number}-{turn}"))
            statuses[int((await reader.readuntil(b"\r\n")).split()[1])] += 1
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()

    async def all_at_once() -> None:
        await asyncio.gather(*(guess(number) for number in range(40)))

    statuses, before, began = Counter[int](), resident_mb(attacked), time.monotonic()
    with unharmed(attacked):
        asyncio.run(all_at_once())
        print(f"{statuses.total() / (time.monotonic() - began):.0f} wrong keys a second")
    assert set(statuses) == {401}
    assert resident_mb(attacked) < before + 20


@pytest.mark.skipif(not LONG, reason="waits for time limits: TUNESHIP_TEST_LONG=1")
def test_slow_headers_and_bodies_have_an_end(attacked: Served) -> None:
    with (
        connected(attacked, b"POST / HTTP/1.1\r\nX-Slow: ") as header,
        connected(attacked, http(b"{", length=9)) as body,
    ):
        began, ended = time.monotonic(), dict[str, float]()
        body.settimeout(BODY_TIMEOUT_S + 20)
        assert status_of(body) == 408
        ended["body"] = time.monotonic() - began
        try:
            while time.monotonic() - began < KEEPALIVE_S + 30:
                header.sendall(b"a")
                time.sleep(1)
        except ConnectionError:
            ended["header"] = time.monotonic() - began
    assert ended["body"] == pytest.approx(BODY_TIMEOUT_S, abs=10)
    assert ended["header"] == pytest.approx(KEEPALIVE_S, abs=15)


@pytest.mark.skipif(not LONG, reason="computes hundreds of answers: TUNESHIP_TEST_LONG=1")
def test_more_requests_than_an_engine_takes(attacked: Served) -> None:
    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
        writer.write(http(json.dumps(QUESTION | {"max_tokens": 1}).encode()))
        statuses[int((await reader.readuntil(b"\r\n")).split()[1])] += 1
        writer.close()

    async def all_at_once() -> None:
        await asyncio.gather(*(one() for _ in range(600)))

    statuses = Counter[int]()
    asyncio.run(all_at_once())
    assert set(statuses) == {200, 503}, attacked.log[-3000:]
    assert statuses[200] >= 144
    with unharmed(attacked):
        pass
