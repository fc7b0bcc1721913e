"""TLS in front, and two real servers behind one endpoint of which one goes away."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compose import ROOT, SERVE, Project, docker, wait_for

# the server's children, found by their program
KILL_ENGINES = """
import contextlib, os, pathlib, signal
for found in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it ended meanwhile
        words = (found / "cmdline").read_bytes()
        if (b"server.xllama" in words or b"llama-server" in words) and int(found.name) != os.getpid():
            os.kill(int(found.name), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate and its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(argv, check=True, capture_output=True)
    (folder / "both").write_text((folder / "certificate").read_text() + (folder / "key").read_text())
    (folder / "both").chmod(0o644)
    return folder / "both"


@pytest.fixture(scope="module")
def balanced(
    project: Callable[..., Project],
    stand_ins: dict[str, str],
    shared_store: Path,
    certificate: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Project:
    """Two servers with the generated configuration in front of them."""
    kit = project("proxy", TUNESHIP_STORE=str(shared_store), TUNESHIP_TLS_PEM=str(certificate), **stand_ins)
    names = [f"{kit.name}-server-llamacpp-{number}:8000" for number in (1, 2)]
    written = subprocess.check_output([ROOT / "tools" / "balancer.py", "--tls", *names], text=True)
    file = tmp_path_factory.mktemp("proxy") / "haproxy.cfg"
    file.write_text(written)
    file.chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tls_port = str(probe.getsockname()[1])
    first = int(kit.environment["TUNESHIP_PORT"])
    ports = {"TUNESHIP_PORT": f"{first}-{first + 1}", "TUNESHIP_TLS_PORT": tls_port}
    kit.environment |= ports | {"TUNESHIP_PROXY_CONFIG": str(file)}
    kit.must(*SERVE, "up", "--detach", "--wait", "--no-build", "--scale", "server-llamacpp=2", "server-llamacpp")
    kit.must("--profile", "proxy", "up", "--detach", "--no-deps", "proxy")
    return kit


def asked(kit: Project, certificate: Path, path: str = "/v1/chat/completions") -> int:
    """The status; 0 where the connection broke. The body follows its headers, as with many clients."""
    body = {"model": "tuned", "messages": [{"role": "user", "content": "How long? (0)"}], "max_tokens": 8}
    data = json.dumps(body).encode() if path.startswith("/v1") else b""
    context = ssl.create_default_context(cafile=str(certificate))
    port = int(kit.environment["TUNESHIP_TLS_PORT"])
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
    try:
        connection.putrequest("POST" if data else "GET", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        if data:
            time.sleep(0.01)
            connection.send(data)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def test_the_endpoint_answers_over_tls_and_keeps_the_metrics_to_itself(balanced: Project, certificate: Path) -> None:
    wait_for(lambda: asked(balanced, certificate) == 200, 30, "an answer over TLS")
    assert asked(balanced, certificate, "/metrics") == 403
    assert asked(balanced, certificate, "/ready") == 200


def test_both_servers_get_requests(balanced: Project, certificate: Path) -> None:
    before = [_answered(balanced, number) for number in (1, 2)]
    assert [asked(balanced, certificate) for _ in range(6)] == [200] * 6
    assert all(_answered(balanced, number) > count for number, count in zip((1, 2), before, strict=True))


def _answered(kit: Project, number: int) -> int:
    """Requests that one of the servers has answered, as its own metrics say."""
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    text = docker("exec", f"{kit.name}-server-llamacpp-{number}", "python3", "-c", program)
    found = [line for line in text.splitlines() if line.startswith('tuneship_requests_total{model="tuned"')]
    return sum(int(line.split()[-1]) for line in found if 'code="200"' in line)


@pytest.mark.parametrize("how", ["stop", "kill", "kill the engine"])
def test_a_server_that_goes_away_costs_no_new_request(balanced: Project, certificate: Path, how: str) -> None:
    """`kill` breaks what that server was answering; while it drains, or without its engine, nothing may fail."""
    statuses: list[int] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            statuses.append(asked(balanced, certificate))

    wait_for(lambda: asked(balanced, certificate) == 200, 30, "an answer over TLS")
    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    name = f"{balanced.name}-server-llamacpp-2"
    wait_for(lambda: len(statuses) > 4, 30, "requests")
    if how == "kill the engine":
        docker("exec", name, "python3", "-c", KILL_ENGINES)
    else:
        docker(how, name, timeout_s=60)
    since = len(statuses)
    wait_for(lambda: len(statuses) > since + 8, 60, "requests to the other server")
    docker("start", name)
    wait_for(lambda: _health(name) == "healthy", 60, "health")
    done.set()
    for thread in threads:
        thread.join()
    failed = [status for status in statuses if status != 200]
    assert len(failed) <= (len(threads) if how == "kill" else 0), (statuses, balanced.log("proxy"))
    assert _health(name) == "healthy"


def _health(name: str) -> Any:
    return json.loads(docker("inspect", name))[0]["State"]["Health"]["Status"]
