"""Starting, failing, restarting and ending, with real processes and signals."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from modelstore import ArtifactSpec, Store
from tests.server.conftest import BASE_ID, ROOT, RUN_ID, Served, free_port, serving, until


def ready(served: Served) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{served.url}/ready", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def long_stream(served: Served, tokens: int, key: str = "unused") -> openai.Stream[Any]:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)
    return client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": "Tell me a very long story."}],
        max_tokens=tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def serve_and_fail(store: Store, *options: str, **environment: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store.path), *options]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **environment}
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def damaged_copy(store: Store, folder: Path, relative: str) -> Store:
    shutil.copytree(store.path, folder)
    file = folder / relative
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return Store(folder)


def test_a_killed_engine_is_not_ready_then_restarted_and_the_other_serves_on(store: Store) -> None:
    with serving(store, "--threads", "1") as served:
        tuned, base = served.engines()
        stream = long_stream(served, 1500)
        next(iter(stream))
        os.kill(tuned, signal.SIGKILL)
        with pytest.raises(openai.APIError):  # never a silent end
            list(stream)
        until(lambda: ready(served)[0] == 503)
        assert "tuned" in ready(served)[1]["why"]
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
        assert client.completions.create(model="base", prompt="Hi", max_tokens=1).choices
        until(lambda: ready(served)[0] == 200)
        assert client.completions.create(model="tuned", prompt="Hi", max_tokens=1).choices
        assert served.engines() != [tuned, base]
        tuned, base = served.engines()
        os.kill(served.process.pid, signal.SIGKILL)  # no engine survives its server
        until(lambda: not any(is_alive(pid) for pid in (tuned, base)))


def test_running_streams_end_before_the_server_does(store: Store) -> None:
    with serving(store, "--threads", "2") as served:
        engines = served.engines()
        stream = long_stream(served, 150)
        next(iter(stream))
        served.process.send_signal(signal.SIGTERM)
        until(lambda: not accepts(served.port))
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert served.process.wait(15) == 0
        assert not any(is_alive(pid) for pid in engines)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_got_in_before_the_end_is_answered(store: Store) -> None:
    """Many new connections, so that some arrive between the signal and the closing of the port."""
    with serving(store, "--threads", "1") as served:
        statuses: list[int] = []

        def keep_asking() -> None:
            while True:
                connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
                try:
                    connection.request("GET", "/v1/models")
                    statuses.append(connection.getresponse().status)
                except (OSError, http.client.HTTPException):  # not accepted any more
                    return
                finally:
                    connection.close()

        threads = [threading.Thread(target=keep_asking) for _ in range(16)]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) > 100)
        served.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert set(statuses) == {200}
        assert served.process.wait(5) == 0  # no connection kept it for all of --drain-s


def test_draining_has_an_end(store: Store) -> None:
    with serving(store, "--threads", "1", "--drain-s", "0.5") as served:
        stream = long_stream(served, 2000)
        next(iter(stream))
        began = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIConnectionError):  # cut off, which a client must be able to see
            list(stream)
        served.process.wait(15)
        assert time.monotonic() - began < 5


def test_streams_are_for_a_purpose(store: Store) -> None:
    code, said = serve_and_fail(store, "--streams", "4", "--port", "0")
    assert (code, "--for latency" in said) == (2, True)


def test_a_port_in_use_is_said_before_a_model_is_read(store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = serve_and_fail(store, "--port", str(port))
    assert code == 2
    assert f"Port {port}" in said
    assert f"{port + 1}" in said


@pytest.mark.parametrize(
    "relative",
    [
        f"runs/{RUN_ID}/gguf/tuned-Q4_1.gguf",
        f"runs/{RUN_ID}/training.jsonl",
        f"bases/{BASE_ID}/gguf/base-Q4_1.gguf",
    ],
)
def test_a_flipped_byte_is_refused_with_the_name_of_the_file(store: Store, tmp_path: Path, relative: str) -> None:
    code, said = serve_and_fail(damaged_copy(store, tmp_path / "models", relative), "--port", str(free_port()))
    assert code == 2
    assert relative.rpartition("/")[2] in said


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("nothing-like-this",), "make runs"),
        (("--quantization", "Q2_K"), "Q4_1"),
        (("--api-key-file", "no-such-file"), "no-such-file"),
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
    ],
)
def test_mistakes_are_one_line_with_advice(store: Store, options: tuple[str, ...], advice: str) -> None:
    code, said = serve_and_fail(store, *options, *(() if "--port" in options else ("--port", str(free_port()))))
    *_, last = said.splitlines()
    assert (code, said.count("error:")) == (2, 1)
    assert advice in last


def test_an_engine_that_cannot_start_ends_the_server(store: Store, tmp_path: Path) -> None:
    broken = Store(tmp_path / "models")
    broken.create()
    for stage, name in ((broken.stage_base, BASE_ID), (broken.stage, RUN_ID)):
        with stage(name) as staging:
            (staging.path / "model.gguf").write_bytes(b"GGUF, but not really")
            fields = {"base": {"id": BASE_ID}, "serve": {"quantization": "Q8_0"}}
            staging.publish(fields, [ArtifactSpec("gguf", "model.gguf", "Q8_0")])
    code, said = serve_and_fail(broken, RUN_ID, "--port", str(free_port()))
    assert code == 1
    assert "before it generated anything" in said


def test_an_engine_with_another_chat_template_ends_the_server(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "models")
    shutil.copytree(store.path, other.path)
    path = other.path / "runs" / RUN_ID / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template_sha256": "0" * 64}))
    code, said = serve_and_fail(other, "--port", str(free_port()))
    assert code == 1
    assert "another chat template" in said


def test_keys(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who may ask\nalice key-of-alice\n\nbob key-of-bob streams=1\n")
    with serving(store, "--threads", "1", "--api-key-file", str(file)) as served:
        assert asked_with(served, "key-of-bob") == 200
        for wrong in ("key-of-eve", "", "key-of-bo", "schlüssel"):
            assert asked_with(served, wrong) == 401
        assert ready(served)[0] == 200
        until(lambda: "key=bob" in served.log)
        arguments = [Path(f"/proc/{pid}/cmdline").read_text() for pid in served.engines()]
        assert not [text for text in arguments if "api-key" in text]
        stream = long_stream(served, 400, key="key-of-bob")
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            long_stream(served, 1, key="key-of-bob")
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.response.json()["error"]["code"] == "rate_limit_exceeded"
        file.write_text("eve key-of-eve\n")  # while bob's stream runs
        until(lambda: asked_with(served, "key-of-eve") == 200)
        assert asked_with(served, "key-of-bob") == 401
        assert list(stream)[-1].choices[0].finish_reason == "length"
        file.write_text("eve\n")
        until(lambda: "keys: unchanged" in served.log)
        assert asked_with(served, "key-of-eve") == 200
        assert "key-of-" not in served.log


def asked_with(served: Served, key: str) -> int:
    request = urllib.request.Request(f"{served.url}/v1/models", headers={"Authorization": b"Bearer " + key.encode()})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        assert json.load(error)["error"]["code"] == "invalid_api_key"
        return error.code


def test_an_engine_is_not_reachable_without_its_own_key(served: Served) -> None:
    ports = [int(word) for pid in served.engines() for word in after("--port", pid)]
    for port in ports:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", b"{}"), timeout=5)


def after(flag: str, pid: int) -> list[str]:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return [words[words.index(flag) + 1]]


def test_health_is_live_while_models_load(store: Store) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store.path), "--port", str(port)]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        seen: list[int] = []
        served = Served(process, port)  # type: ignore[arg-type]
        until(lambda: accepts(port))
        watch = threading.Thread(target=lambda: seen.append(ready(served)[0]))
        watch.start()
        with urllib.request.urlopen(f"{served.url}/health", timeout=10) as answer:
            assert answer.status == 200
        watch.join(10)
        until(lambda: ready(served)[0] == 200, 40)
        assert seen == [503]
        process.terminate()
        assert process.wait(15) == 0
