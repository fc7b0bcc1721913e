"""The single checks of the doctor that concern the machine. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import envs

ROOT = Path(__file__).resolve().parent.parent
DRIVERS = {13: 580, 12: 570}  # CUDA's major version -> oldest driver that it runs on
VLLM_CUDA = "13.0"  # of the image that docker/server-vllm.Dockerfile is built on; its tag does not say it
OLDEST_COMPOSE = (2, 20)  # knows depends_on with required: false
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
        elif wrong := other_versions(folder, locks[0]):
            yield Finding(title, FAILURE, ", ".join(wrong[:3]), f"rm -r .venv/{name} && make setup")
        else:
            yield Finding(title, OK, f"as {locks[0].relative_to(ROOT)}")


def other_versions(folder: Path, lock: Path) -> list[str]:
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


def cuda_of_images() -> dict[str, str]:
    """CUDA's version in each image that uses a GPU, from what the images are built of."""
    lock = _text(str(ROOT / "requirements" / "trainer-cuda.lock"))  # a bundle has the images and not their sources
    llamacpp = _text(str(ROOT / "docker" / "server-llamacpp.Dockerfile"))
    found = {
        "trainer": re.search(r"^nvidia-cuda-runtime==([0-9.]+)$", lock, re.MULTILINE),
        "server-llamacpp": re.search(r"^ARG CUDA_IMAGE=\S*?:([0-9.]+)", llamacpp, re.MULTILINE),
    }
    return {name: match[1] for name, match in found.items() if match} | {"server-vllm": VLLM_CUDA}


def gpu() -> Finding:
    """The NVIDIA driver against the CUDA version of every image."""
    if not shutil.which("nvidia-smi"):
        return Finding("gpu", OK, "none: training and serving run on the processor")
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.free,memory.total", "--format=csv,noheader"]
    done = output(asked)
    if done is None or not done.strip():
        return Finding("gpu", FAILURE, "nvidia-smi does not answer", "reload the NVIDIA driver, or restart the host")
    line = done.splitlines()[0]
    driver = int(line.split(",")[1].strip().split(".")[0])
    needed = {f"{name} (CUDA {cuda})": DRIVERS[int(cuda.split(".")[0])] for name, cuda in cuda_of_images().items()}
    if unfit := [name for name, oldest in needed.items() if driver < oldest]:
        seen = f"driver {driver} is too old for {', '.join(unfit)}"
        return Finding("gpu", FAILURE, seen, f"install an NVIDIA driver of version {max(needed.values())} or newer")
    return Finding("gpu", OK, f"{line}; fits {', '.join(needed)}")


def llamacpp() -> Finding:
    """Which llama.cpp serves without containers, and whether a better one could."""
    compiled, folder = ROOT / ".venv" / "llamacpp" / "llama-server", os.environ.get("TUNESHIP_LLAMACPP")
    correct, remove = "{} does not run: correct the variable, or unset it", "remove {}, or make llamacpp"
    for program, whose, remedy in (
        (os.environ.get("TUNESHIP_LLAMA_SERVER"), "TUNESHIP_LLAMA_SERVER", correct),
        (f"{folder}/llama-server" if folder else None, "TUNESHIP_LLAMACPP", correct),
        (str(compiled) if compiled.exists() else None, "compiled here", remove),
        (shutil.which("llama-server"), "on the PATH", remove),
    ):
        if program:
            runs = output([program, "--version"]) is not None
            status, wanted = (OK, "") if runs else (FAILURE, remedy.format(program))
            return Finding("llama.cpp", status, f"{program}, {whose}", wanted)
    if shutil.which("nvidia-smi"):
        seen = "the package's, which knows no GPU"
        return Finding("llama.cpp", WARNING, seen, "make llamacpp (with the CUDA toolkit), vLLM, or containers")
    faster = "; `make llamacpp` makes a faster one" if "avx512_vnni" in _text("/proc/cpuinfo") else ""
    return Finding("llama.cpp", OK, f"the package's, for processors with AVX2{faster}")


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
    engine = output(["docker", "info", "--format", "{{.ServerVersion}} {{json .Runtimes}}"])
    if engine is None:
        return Finding(
            "docker", WARNING, "no engine answers: everything runs natively", "start Docker, or RUNTIME=native"
        )
    if (found := compose()).status != OK:
        return found
    seen = f"engine {engine.split()[0]}, {found.seen}"
    if shutil.which("nvidia-smi") and "nvidia" not in engine:
        return Finding("docker", FAILURE, f"{seen}, without NVIDIA's runtime", "install nvidia-container-toolkit")
    return Finding("docker", OK, seen)


def compose() -> Finding:
    """Docker's compose plugin, and whether it knows what compose.yaml is written in."""
    said = output(["docker", "compose", "version", "--short"])
    if said is None:
        return Finding("docker", FAILURE, "the compose plugin is missing", "install docker-compose-plugin")
    version = re.match(r"v?(\d+)\.(\d+)", said.strip())
    if version and (int(version[1]), int(version[2])) < OLDEST_COMPOSE:
        return Finding(
            "docker", FAILURE, f"compose {said.strip()}: too old", "install docker-compose-plugin 2.20 or newer"
        )
    return Finding("docker", OK, f"compose {said.strip()}")


def output(argv: list[str]) -> str | None:
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
