"""The real compose.yaml in a project of its own, driven as an operator would."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVE = ("--profile", "serve-llamacpp")
ALL = ("--profile", "train", *SERVE)


def docker(*arguments: str, timeout_s: float = 60) -> str:
    """Raises CalledProcessError."""
    argv = ["docker", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=timeout_s).stdout.strip()


def as_root(program: str, *arguments: str, volume: str = "") -> str:
    """A program as root among the engine's processes, for tests that do not run as root themselves."""
    mounts = ["--volume", volume] if volume else []
    entry = ["--pid", "host", "--user", "0:0", *mounts, "--entrypoint", program, "tuneship/clients:test-cpu"]
    return docker("run", "--rm", *entry, *arguments)


def send(signal_number: int, *pids: int) -> None:
    """A signal to processes of containers, from outside, as the kernel's out-of-memory killer does it."""
    as_root("python3", "-c", f"import os; [os.kill(pid, {int(signal_number)}) for pid in {list(pids)}]")


@dataclass
class Project:
    """One compose project: its name, its variables, the files that it is made of."""

    name: str
    environment: dict[str, str]
    files: list[str] = field(default_factory=lambda: ["compose.yaml"])

    def compose(self, *arguments: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        """docker compose with everything it said; the caller judges the exit code."""
        files = [part for file in self.files for part in ("-f", str(ROOT / file))]
        argv = ["docker", "compose", "--ansi", "never", "--progress", "plain", "-p", self.name, *files, *arguments]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        print(
            f"$ docker compose {' '.join(arguments)} -> {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done

    def must(self, *arguments: str, timeout_s: float = 400) -> str:
        """The output of a command that has to succeed."""
        done = self.compose(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows about a service's container."""
        listed = docker("ps", "-aq", "-f", f"label=com.docker.compose.project={self.name}", "-f", _service(service))
        assert listed, f"{service} has no container"
        described: dict[str, Any] = json.loads(docker("inspect", listed.splitlines()[0]))[0]
        return described

    def exists(self, service: str) -> bool:
        """Whether the service was started: compose makes containers before what they depend on has ended."""
        labels = ("-f", f"label=com.docker.compose.project={self.name}", "-f", _service(service))
        return bool(docker("ps", "-q", *labels))

    def log(self, service: str) -> str:
        """Everything the service wrote since it was made."""
        return self.must("--profile", "*", "logs", "--no-color", "--no-log-prefix", service)

    def steps(self) -> int:
        """Steps that the trainer reported; the log of a container goes on when it is started again."""
        return self.log("trainer").count("step ")

    def down(self) -> None:
        """Containers, networks and volumes of every profile."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5")

    @property
    def url(self) -> str:
        """Where the project's server is published."""
        return f"http://127.0.0.1:{self.environment['TUNESHIP_PORT']}"


@dataclass(frozen=True)
class Interruptions:
    """What was seen while a training was stopped once and killed once, before it was started for the third time."""

    exit_code_after_stop: int
    steps_before_stop: int
    steps_after_start: int


def _service(name: str) -> str:
    return f"label=com.docker.compose.service={name}"


def ask(url: str, body: dict[str, Any] | None = None, key: str = "") -> tuple[int, Any]:
    """Status and parsed answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def wait_for(what: Callable[[], Any], timeout_s: float, message: str) -> Any:
    """The first true value. Fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.25)
    raise AssertionError(f"{message} not within {timeout_s:g} s")
