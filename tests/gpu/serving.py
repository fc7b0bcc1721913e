"""A run of a store behind the kit's own server, asked as a user asks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gpu.phi3 import ROOT


def right_answers(store: Path, work: Path) -> dict[str, list[str]]:
    """The demo's held-out questions, put to the store's current run; which of them `base` and `tuned` got right."""
    out = work / "report"
    with served(store, "current", work / "serve.log") as url:
        argv = program("clients", "eval", "--url", f"{url}/v1", "--store", str(store), "--out", str(out))
        argv += ["--questions", "data/handbook-en/questions.jsonl", "--json"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answers = json.loads(max(out.glob("**/report.json")).read_text())["answers"]
    return {name: [each["id"] for each in answers if each[name]["score"]["strict"]] for name in ("base", "tuned")}


def program(name: str, *arguments: str) -> list[str]:
    """A program of the kit in its own environment, or in this one where there is only one."""
    python = ROOT / ".venv" / name / "bin" / "python"
    return [str(python) if python.exists() else sys.executable, "-m", name, *arguments]


@contextmanager
def served(store: Path, ref: str, log: Path) -> Iterator[str]:
    """The run behind llama.cpp, ready; the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    argv = program("server", "serve", ref, "--store", str(store), "--port", str(port), "--engine", "llamacpp")
    with log.open("w") as said, subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said) as server:
        try:
            subprocess.run(program("server", "wait", "--url", url, "--timeout-s", "120"), cwd=ROOT, check=True)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
