#!/usr/bin/env python3
"""Looks whether this machine can train, serve and deploy, before any work is lost: one line a check.

usage: tools/doctor.py [--store models] [--port 8000] [--json]

Exit code: 0 when nothing failed (warnings are allowed), 1 otherwise. Each failure ends with what mends it. Standard
library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import envs

ROOT = Path(__file__).resolve().parent.parent
OLDEST_DRIVER = 580  # of CUDA 13.0, which every GPU image holds
LEAST_MEMORY_BYTES = 6 << 30  # the demo's peak is below 3 GiB; a laptop has other things to do
LEAST_DISK_BYTES = 6 << 30  # environments 2 GB, a demo run with its base 2 GB
OLDEST_CLOCK = time.mktime((2026, 11, 1, 0, 0, 0, 0, 0, 0))  # this version is not older
OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True)
class Finding:
    """What one check saw. `remedy` is the command or step that mends it, empty where nothing needs mending."""

    name: str
    status: str
    seen: str
    remedy: str = ""


def python() -> Finding:
    """The interpreter that makes the environments."""
    seen = sys.version.split()[0]
    if envs.SUPPORTED[0] <= sys.version_info[:2] <= envs.SUPPORTED[1]:
        return Finding("python", OK, seen)
    return Finding("python", FAILURE, f"{seen}, and 3.11 to 3.13 is needed", "make PYTHON=python3.12 …")


def environments() -> Iterator[Finding]:
    """Each environment against its lock: made, of this lock, and with the versions that it names."""
    for name in envs.ENVIRONMENTS:
        folder, locks = ROOT / ".venv" / name, envs.locks(name)
        title = f"environment {name}"
        if not (folder / "stamp").exists():
            yield Finding(title, WARNING, "not made yet", "make setup")
        elif envs.is_new(folder / "stamp", locks):
            yield Finding(title, WARNING, "made from another lock or another Python; the next command refreshes it")
        elif wrong := _other_versions(folder, locks[0]):
            yield Finding(title, FAILURE, ", ".join(wrong[:3]), f"rm -r .venv/{name} && make setup")
        else:
            yield Finding(title, OK, f"as {locks[0].relative_to(ROOT)}")


def _other_versions(folder: Path, lock: Path) -> list[str]:
    installed = {}
    for path in folder.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        installed[_normal(name)] = version.partition("+")[0]
    wanted = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    return [
        f"{name} {installed.get(_normal(name), 'is missing')} instead of {version}"
        for name, version in wanted.items()
        if installed.get(_normal(name)) != version
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def gpu() -> Finding:
    """The NVIDIA driver against the CUDA version of the images."""
    if not shutil.which("nvidia-smi"):
        return Finding("gpu", OK, "none: training and serving run on the processor")
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.free,memory.total", "--format=csv,noheader"]
    done = _run(asked)
    if done is None or not done.strip():
        return Finding("gpu", FAILURE, "nvidia-smi does not answer", "reload the NVIDIA driver, or restart the host")
    line = done.splitlines()[0]
    driver = line.split(",")[1].strip()
    if int(driver.split(".")[0]) < OLDEST_DRIVER:
        return Finding(
            "gpu", FAILURE, f"driver {driver}", f"install an NVIDIA driver of version {OLDEST_DRIVER} or newer"
        )
    return Finding("gpu", OK, line)


def memory() -> Finding:
    """Available memory, within the container's limit."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in fields:
        return Finding("memory", WARNING, "unknown on this system")
    available = int(fields["MemAvailable"]) * 1024
    if (limit := _text("/sys/fs/cgroup/memory.max").strip()).isdigit():
        available = min(available, int(limit))
    seen = f"{available / 2**30:.1f} GiB available"
    if available < LEAST_MEMORY_BYTES:
        return Finding("memory", WARNING, seen, "end other programs, or take a smaller batch_size")
    return Finding("memory", OK, seen)


def processors() -> Finding:
    """Processors within the quota; threads above it are throttled."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    usable = min(allowed, int(quota) // int(period)) if quota.isdigit() else allowed
    busy = os.getloadavg()[0]
    seen = f"{usable} usable, load {busy:.1f}"
    if busy > 2 * max(1, usable):
        return Finding("processors", WARNING, seen, "other programs compete: expect a multiple of the usual times")
    return Finding("processors", OK, seen)


def store(path: Path) -> Iterator[Finding]:
    """Disk, and whether publishing works here: a file is written, flushed, renamed and removed."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    remedy = "make prune, or STORE=… on another disk"
    seen = f"{free / 2**30:.1f} GiB free at {there}"
    yield Finding("disk", OK if free >= LEAST_DISK_BYTES else FAILURE, seen, remedy if free < LEAST_DISK_BYTES else "")
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as folder:
            _publish_something(Path(folder))
    except OSError as error:
        said = f"{there} takes no new files: {error.strerror or error}"
        yield Finding("store", FAILURE, said, f"sudo chown -R $(id -u):$(id -g) {there}, or STORE=… elsewhere")
        return
    yield Finding("store", OK, f"{there}: write, fsync and rename work")


def _publish_something(folder: Path) -> None:
    staging = folder / "staging"
    staging.mkdir()
    with (staging / "manifest.json").open("w") as file:
        file.write("{}")
        file.flush()
        os.fsync(file.fileno())
    staging.rename(folder / "run")


def port(number: int) -> Finding:
    """Whether the server could listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            seen = f"{number} cannot be used: {error.strerror}"
            return Finding("port", WARNING, seen, f"make serve PORT={number + 1}, or stop what listens there")
    return Finding("port", OK, f"{number} is free")


def clock() -> Finding:
    """Run ids and certificates depend on it."""
    seen = time.strftime("%Y-%m-%d %H:%M")
    if time.time() < OLDEST_CLOCK:
        return Finding("clock", FAILURE, f"{seen} lies before this version", "set the clock (timedatectl set-ntp true)")
    return Finding("clock", OK, seen)


def docker() -> Finding:
    """The engine, compose, and whether containers can have the GPU."""
    if not shutil.which("docker"):
        return Finding("docker", OK, "not installed: everything runs natively")
    engine = _run(["docker", "info", "--format", "{{.ServerVersion}} {{json .Runtimes}}"])
    if engine is None:
        return Finding(
            "docker", WARNING, "no engine answers: everything runs natively", "start Docker, or RUNTIME=native"
        )
    compose = _run(["docker", "compose", "version", "--short"])
    if compose is None:
        return Finding("docker", FAILURE, "the compose plugin is missing", "install docker-compose-plugin")
    seen = f"engine {engine.split()[0]}, compose {compose.strip()}"
    if shutil.which("nvidia-smi") and "nvidia" not in engine:
        return Finding("docker", FAILURE, f"{seen}, without NVIDIA's runtime", "install nvidia-container-toolkit")
    return Finding("docker", OK, seen)


def examine(store_path: Path, port_number: int) -> list[Finding]:
    """Every check; one that breaks is itself a failure."""
    checks: list[Callable[[], Finding | Iterator[Finding]]] = [
        python,
        environments,
        processors,
        memory,
        lambda: store(store_path),
        gpu,
        docker,
        lambda: port(port_number),
        clock,
    ]
    found: list[Finding] = []
    for check in checks:
        seen = check()
        found += [seen] if isinstance(seen, Finding) else seen
    return found


def _run(argv: list[str]) -> str | None:
    """What the command wrote, or None where it failed or took longer than 10 s."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    wish = parser.parse_args()
    found = examine(wish.store, wish.port)
    if wish.json:
        print(json.dumps([asdict(finding) for finding in found]))
    else:
        for each in found:
            print(f"{each.status:8} {each.name:20} {each.seen}" + (f"\n{'':9}→ {each.remedy}" if each.remedy else ""))
    return 1 if any(finding.status == FAILURE for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main())
