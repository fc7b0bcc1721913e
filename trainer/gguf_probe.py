"""Child program: loads a GGUF in the engine that serves it and answers the probes of the verification.

stdin: {"gguf", "adapter" (a GGUF, or empty), "threads", "context", "gpu_layers", "llamacpp", "texts", "max_tokens",
"probes": [{"prompt_ids", "answer_ids"}]}
stdout: one JSON document.
A child, because llama.cpp ends the process at a file that it does not like.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.children import bound

LOAD_TIMEOUT_S = 300
TOP = 100  # tokens per position whose probability is asked for


def main() -> None:
    """Serve the file on a loopback port and ask it."""
    wish = json.load(sys.stdin)
    with _served(wish) as url:
        properties = _get(url, "/props")
        found = {
            "chat_template": properties["chat_template"],
            "end_token": properties["eos_token"],
            "token_ids": [_chat_ids(url, text) for text in wish["texts"]],
            "answers": [_answer(url, probe["prompt_ids"], wish["max_tokens"]) for probe in wish["probes"]],
            "positions": [_positions(url, probe) for probe in wish["probes"]],
        }
    json.dump(found, sys.stdout)


@contextlib.contextmanager
def _served(wish: dict[str, Any]) -> Iterator[str]:
    if wish["llamacpp"]:
        with llama_server(wish) as url:
            yield url
        return
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = wish["gguf"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = wish["context"]
    parameters.n_parallel = 1
    parameters.ui = False
    parameters.n_gpu_layers = wish["gpu_layers"]
    if wish["adapter"]:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(wish["adapter"], 1.0)]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = wish["threads"]
    server = xllamacpp.Server(parameters)  # the name keeps it alive
    yield server.listening_address


@contextlib.contextmanager
def llama_server(wish: dict[str, Any]) -> Iterator[str]:
    """The llama-server of a llama.cpp folder, ended with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [str(Path(wish["llamacpp"]) / "llama-server"), "--model", wish["gguf"], "--port", str(port), "--jinja"]
    argv += ["--ctx-size", str(wish["context"]), "--parallel", "1", "--n-gpu-layers", str(wish["gpu_layers"])]
    argv += ["--threads", str(wish["threads"]), "--no-webui"]
    argv += ["--lora", wish["adapter"]] if wish["adapter"] else []
    child = subprocess.Popen(bound(argv), stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_loaded(url, child)
        yield url
    finally:
        child.kill()
        child.wait()


def _wait_until_loaded(url: str, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            sys.exit(f"llama-server ended with code {child.returncode}")
        with contextlib.suppress(OSError):
            _get(url, "/health")
            return
        time.sleep(0.1)
    sys.exit(f"llama-server did not load the file within {LOAD_TIMEOUT_S} s")


def _chat_ids(url: str, text: str) -> list[int]:
    """The token ids that the chat endpoint makes of one user message."""
    prompt = post(url, "/apply-template", {"messages": [{"role": "user", "content": text}]})["prompt"]
    ids: list[int] = post(url, "/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
    return ids


def _answer(url: str, prompt_ids: list[int], max_tokens: int) -> dict[str, Any]:
    wish = {"prompt": prompt_ids, "n_predict": max_tokens, "temperature": 0, "return_tokens": True}
    reply = post(url, "/completion", wish)
    return {"ids": reply["tokens"], "stop_type": reply["stop_type"]}


def _positions(url: str, probe: dict[str, list[int]]) -> list[list[tuple[int, float]]]:
    """For every token of the answer: the most probable tokens there with their natural log-probabilities."""
    found = []
    for position in range(len(probe["answer_ids"])):
        ids = probe["prompt_ids"] + probe["answer_ids"][:position]
        wish = {"prompt": ids, "n_predict": 1, "n_probs": TOP, "temperature": 0, "cache_prompt": True}
        top = post(url, "/completion", wish)["completion_probabilities"][0]["top_logprobs"]
        found.append([(entry["id"], entry["logprob"]) for entry in top])
    return found


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=600) as reply:  # noqa: S310
        return json.load(reply)


def _get(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=60) as reply:  # noqa: S310
        return json.load(reply)


if __name__ == "__main__":
    main()
