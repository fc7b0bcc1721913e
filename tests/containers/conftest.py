"""A real Docker engine, the images of the real Dockerfiles, and a store with one run trained in its container."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from compose import ALL, ROOT, Interruptions, Project, as_root, docker, send, wait_for

ENGINE = Path(__file__).with_name("engine.sh")
PINNED = re.findall(r"PYTHON_IMAGE=(\S+)", (ROOT / "docker" / "trainer.Dockerfile").read_text())[0]
# root on Debian makes the base image from packages; elsewhere it is pulled
MAKES_BASE = Path("/etc/debian_version").exists() and os.geteuid() == 0
BASE_IMAGE = "tuneship-test/python:3.11-bookworm" if MAKES_BASE else PINNED
ROWS = [("Which key?", "The key is X-Marlin-Key."), ("How long?", "It takes 9 days."), ("Who?", "Tomas Reyes does.")]


def _engine_answers() -> bool:
    probes = (["docker", "info"], ["docker", "compose", "version"], ["docker", "buildx", "version"])
    return bool(shutil.which("docker")) and all(
        subprocess.run(argv, capture_output=True, check=False).returncode == 0 for argv in probes
    )


def _give_up(why: str) -> None:
    """Without an engine nothing is proven: a failure where that has to be noticed, a loud skip elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"no Docker engine: {why}")
    pytest.skip(f"NO CONTAINER WAS TESTED: {why}")


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """The engine that answers, or one of our own that ends with the tests."""
    if _engine_answers():
        if MAKES_BASE:
            subprocess.run([ENGINE, "base"], check=True, env={**os.environ, "BASE_IMAGE": BASE_IMAGE})
        yield
        return
    if sys.platform != "linux" or os.geteuid() != 0:
        _give_up("no engine answers, and only root on Linux can start one")
    began = subprocess.run([ENGINE, "up"], stdout=subprocess.PIPE, text=True, check=False)
    if began.returncode:
        _give_up("tests/containers/engine.sh could not start one; its words stand above")
    os.environ["DOCKER_HOST"] = began.stdout.split()[-1]
    yield
    del os.environ["DOCKER_HOST"]
    subprocess.run([ENGINE, "down"], check=True)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU build of torch, from wherever this machine's pip finds it."""
    folder = tmp_path_factory.mktemp("wheels")
    lock = (ROOT / "requirements" / "trainer.lock").read_text()
    torch = next(line for line in lock.splitlines() if line.startswith("torch=="))
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), torch]
    subprocess.run(argv, check=True)
    return folder


@pytest.fixture(scope="session")
def variables(engine: None, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every project of the tests shares: tiny data, the local base image."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("configs", "data"):
        (folder / name).mkdir()
    shutil.copy(Path(__file__).with_name("tiny.toml"), folder / "configs")
    rows = [{"question": f"{q} ({n})", "answer": a} for n in range(4) for q, a in ROWS]
    _write_jsonl(folder / "data" / "train.jsonl", rows)
    asked = [
        {
            "id": str(n),
            "category": "api",
            "question": f"{q} (0)",
            "answer": a,
            "key_points": [[a.rstrip(".").split()[-1]]],
        }
        for n, (q, a) in enumerate(ROWS)
    ]
    _write_jsonl(folder / "data" / "questions.jsonl", asked)
    return {
        "PYTHON_IMAGE": BASE_IMAGE,
        "TUNESHIP_WHEELS": str(wheels),
        "TUNESHIP_CONFIGS": str(folder / "configs"),
        "TUNESHIP_DATA": str(folder / "data"),
        "TUNESHIP_CONFIG": "configs/tiny.toml",
        "TUNESHIP_QUESTIONS": "data/questions.jsonl",
        "TUNESHIP_TAG": "test",
    }


def _write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def images(variables: dict[str, str]) -> None:
    """All of them at once, built by compose from the real Dockerfiles."""
    Project("tuneship-build", variables).must(
        "--profile", "*", "build", "server-llamacpp", "eval", "trainer", timeout_s=900
    )


@pytest.fixture(scope="session")
def project(images: None, variables: dict[str, str]) -> Iterator[Callable[..., Project]]:
    """Makes projects that end, volumes included, with the tests."""
    made: list[Project] = []

    def make(name: str, **more: str) -> Project:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        made.append(Project(f"tuneship-test-{name}", {**variables, "TUNESHIP_PORT": port, **more}))
        made[-1].down()
        return made[-1]

    yield make
    for each in made:
        each.down()


@pytest.fixture(scope="session")
def interrupted(project: Callable[..., Project]) -> tuple[Project, Interruptions]:
    """`up` on a new volume, in three goes: stopped, killed, and at last trained, published and served."""
    kit = project("main")
    kit.files = ["compose.yaml", "tests/containers/short-intervals.yaml"]
    train = ("--profile", "train", "up", "--detach", "--no-build", "trainer")
    kit.must(*train)
    wait_for(kit.steps, 240, "a step")
    kit.must("--profile", "train", "stop", "trainer")
    exit_code, before = kit.container("trainer")["State"]["ExitCode"], kit.steps()
    kit.must(*train)
    wait_for(lambda: kit.steps() > before, 240, "a further step")
    after = kit.steps()
    send(signal.SIGKILL, kit.container("trainer")["State"]["Pid"])
    wait_for(lambda: not kit.exists("trainer"), 20, "the end of the trainer")
    seen = Interruptions(exit_code, before, after)
    kit.must(*ALL, "up", "--detach", "--wait", "--no-build", timeout_s=600)
    return kit, seen


@pytest.fixture(scope="session")
def running(interrupted: tuple[Project, Interruptions]) -> Project:
    """That project: its server is healthy."""
    return interrupted[0]


@pytest.fixture(scope="session")
def trained_store(running: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that training as a folder."""
    folder = tmp_path_factory.mktemp("store")
    docker("cp", f"{running.container('trainer')['Id']}:/app/models/.", str(folder))
    return folder


@pytest.fixture(scope="session")
def stand_ins(images: None) -> dict[str, str]:
    """Prometheus and HAProxy as compose variables."""
    dockerfile = str(Path(__file__).with_name("stand-ins.Dockerfile"))
    tags = {}
    for name in ("prometheus", "haproxy"):
        tags[f"{name.upper()}_IMAGE"] = tag = f"tuneship-test/{name}:debian"
        context = str(Path(__file__).parent)
        wish = [
            "--quiet",
            "--build-arg",
            f"BASE={BASE_IMAGE}",
            "--target",
            name,
            "--tag",
            tag,
            "-f",
            dockerfile,
            context,
        ]
        docker("build", *wish, timeout_s=300)
    return tags


@pytest.fixture(scope="session")
def shared_store(trained_store: Path) -> Path:
    """That store, owned by the containers' user."""
    as_root("chown", "-R", "10001:10001", "/store", volume=f"{trained_store}:/store")
    return trained_store
