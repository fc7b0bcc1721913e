#!/usr/bin/env python3
"""Runs a command of the kit in containers where a Docker engine answers, and in the environments below .venv elsewhere.

usage: tools/runtime.py train|serve|eval|bench|report|chat|logs|down|ps [the command's own options …]

RUNTIME=docker or native decides otherwise; so does ACCELERATOR=cpu or cuda. The quick part of tools/doctor.py comes
first for train and serve, unless --no-doctor is among the options. Other options are those of the programs
(`python -m trainer train --help`); files that they name are mounted. Standard library only.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"train": "trainer", "serve": "server"} | dict.fromkeys(("eval", "bench", "report", "chat"), "clients")
OPERATIONS = ("logs", "down", "ps")
EXAMINED, NO_DOCTOR = ("train", "serve"), "--no-doctor"
FILE_OPTIONS = ("--config", "--data", "--questions")
UNPRIVILEGED = 10001


class Refused(Exception):
    """What is wrong and what to do, in words."""


@dataclass(frozen=True)
class Machine:
    """What decides where a command runs."""

    has_engine: bool
    has_gpu: bool  # and the engine can hand it on
    serves: bool  # the server's container is up
    wanted: str = "auto"  # RUNTIME
    accelerator: str = "auto"  # ACCELERATOR


@dataclass(frozen=True)
class Plan:
    """What to execute one after the other, with which variables, and what to tell the user first and last."""

    said: str
    commands: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    afterwards: str = ""


def plan(command: str, options: list[str], machine: Machine) -> Plan:
    """Pure but for the owner of the store's folder. Raises Refused."""
    runtime, reason = choose_runtime(command, machine)
    if runtime == "native":
        return native(command, options, reason)
    if command in OPERATIONS:
        wish = {"logs": ["logs", "--follow", "--tail", "100"], "down": ["down"], "ps": ["ps", "--all"]}[command]
        return Plan("", [[*compose(machine), "--profile", "*", *wish, *options]])
    said = f"runtime: docker, because {reason}; {accelerator(machine)[1]}"
    make = {"train": in_trainer, "serve": in_server}.get(command, in_clients)
    return make(command, options, machine, said)


def choose_runtime(command: str, machine: Machine) -> tuple[str, str]:
    """ "docker" or "native", and why."""
    if machine.wanted in ("docker", "native"):
        if machine.wanted == "docker" and not machine.has_engine:
            raise Refused(
                "RUNTIME=docker, and no Docker engine with the compose plugin answers: `docker info` says why."
            )
        return machine.wanted, f"RUNTIME={machine.wanted}"
    if machine.wanted != "auto":
        raise Refused(f"RUNTIME={machine.wanted}: auto, docker and native are known.")
    if not machine.has_engine:
        return "native", "no Docker engine answers"
    if PROGRAMS.get(command) == "clients" and not machine.serves:
        return "native", "no container serves"
    return "docker", "a Docker engine answers"


def accelerator(machine: Machine) -> tuple[str, str]:
    """ "cuda" or "cpu", and a line for the user."""
    if machine.accelerator not in ("auto", "cpu", "cuda"):
        raise Refused(f"ACCELERATOR={machine.accelerator}: auto, cpu and cuda are known.")
    if machine.accelerator != "auto":
        return machine.accelerator, f"accelerator: {machine.accelerator}, because ACCELERATOR={machine.accelerator}"
    if machine.has_gpu:
        return "cuda", "accelerator: cuda, because an NVIDIA GPU and the container toolkit are here"
    return "cpu", "accelerator: cpu, because no NVIDIA GPU that containers can use is here"


def native(command: str, options: list[str], reason: str) -> Plan:
    """The program in its own environment, which is made first."""
    if command in OPERATIONS:
        raise Refused(
            f"`make {command}` is for containers ({reason}). A native server ends with Ctrl-C in its terminal."
        )
    program = PROGRAMS[command]
    setup = [sys.executable, str(ROOT / "tools" / "envs.py"), program]
    run = [str(ROOT / ".venv" / program / "bin" / "python"), "-m", program, command, *options]
    return Plan(f"runtime: native, because {reason}", [setup, run])


def compose(machine: Machine) -> list[str]:
    """docker compose with the files for the accelerator."""
    files = ["compose.yaml"] + (["compose.gpu.yaml"] if accelerator(machine)[0] == "cuda" else [])
    return ["docker", "compose", *(part for name in files for part in ("-f", str(ROOT / name)))]


def build() -> list[str]:
    """Images follow the source; a bundle brings its own."""
    return [] if (ROOT / "SHA256SUMS").exists() else ["--build"]


def in_trainer(command: str, options: list[str], machine: Machine, said: str) -> Plan:
    """A container that ends with the training; Ctrl-C reaches it and leaves a checkpoint."""
    environment = of_store(take(options, "--store", "models"))
    mounts = [part for name in FILE_OPTIONS for part in mount(find(options, name))]
    run = [*compose(machine), "--profile", "train", "run", "--rm", *build(), *mounts, "trainer", command, *options]
    return Plan(said, [run], environment)


def in_server(command: str, options: list[str], machine: Machine, said: str) -> Plan:
    """The server in the background; returns when it generates."""
    environment = of_store(take(options, "--store", "models"))
    host, port = take(options, "--host", "127.0.0.1"), take(options, "--port", "8000")
    service = {"llamacpp": "server-llamacpp", "vllm": "server-vllm"}.get(
        engine := take(options, "--engine", "llamacpp")
    )
    if not service:
        raise Refused(f"--engine {engine}: llamacpp and vllm are known.")
    secrets = {"--api-key-file": "TUNESHIP_KEYS_FILE", "--allowed-signers": "TUNESHIP_ALLOWED_SIGNERS"}
    for option, variable in secrets.items():
        if file := take(options, option, ""):
            environment[variable] = str(Path(file).resolve())
    named = options.pop(0) if options and not options[0].startswith("-") else "current"
    environment |= {"TUNESHIP_BIND": host, "TUNESHIP_PORT": port, "TUNESHIP_RUN": named}
    environment["TUNESHIP_SERVE_ARGS"] = shlex.join(options)
    up = [*compose(machine), "--profile", service.replace("server", "serve"), "up", *build(), "--detach", "--wait"]
    ready = f"ready: http://{host}:{port}/v1   (make logs, make eval, make chat, make down)"
    return Plan(f"{said}; engine: {engine}", [[*up, service]], environment, ready)


def in_clients(command: str, options: list[str], machine: Machine, said: str) -> Plan:
    """A client beside the server."""
    environment = of_store(take(options, "--store", "models"))
    if command != "report":
        options += ["--url", reachable(take(options, "--url", "http://127.0.0.1:8000/v1"))]
    mounts = [part for name in FILE_OPTIONS for part in mount(find(options, name))]
    mounts += written(find(options, "--out"), environment)
    names = [name for name in ("TUNESHIP_API_KEY", "OPENAI_API_KEY") if os.environ.get(name)]
    handed_on = [part for name in names for part in ("--env", name)]
    run = [*compose(machine), "--profile", "eval", "run", "--rm", *build(), "--no-deps"]
    return Plan(said, [[*run, *handed_on, *mounts, "eval", command, *options]], environment)


def reachable(url: str) -> str:
    """The server's name in the containers' network, for an address that means this machine."""
    return "http://server:8000/v1" if urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1") else url


def find(options: list[str], name: str) -> str:
    """The value of an option, or nothing."""
    return options[options.index(name) + 1] if name in options[:-1] else ""


def take(options: list[str], name: str, default: str) -> str:
    """The value of an option, which is removed; compose has a place of its own for it."""
    if name not in options[:-1]:
        return default
    position = options.index(name)
    value = options[position + 1]
    del options[position : position + 2]
    return value


def mount(file: str) -> list[str]:
    """A file at the place where the program will look for it; what configs/ and data/ hold is mounted anyway."""
    if not file or Path(file).parts[0] in ("configs", "data"):
        return []
    if not Path(file).is_file():
        raise Refused(f"There is no file {file}.")
    return ["--volume", f"{Path(file).resolve()}:{Path('/app') / file}:ro"]


def written(folder: str, environment: Mapping[str, str]) -> list[str]:
    """A folder for results, which belongs to the containers' user; the store is mounted anyway."""
    if not folder or Path(folder).resolve().is_relative_to(environment["TUNESHIP_STORE"]):
        return []
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, int(environment["TUNESHIP_UID"]), int(environment["TUNESHIP_GID"]))
    return ["--volume", f"{path}:{Path('/app') / folder}"]


def of_store(folder: str) -> dict[str, str]:
    """The store as a folder of this machine: containers run as its owner, never as root."""
    store = Path(folder).resolve()
    if not store.exists():
        store.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(store, UNPRIVILEGED, UNPRIVILEGED)
    owner = store.stat()
    if owner.st_uid == 0:
        advice = f"chown -R {UNPRIVILEGED}:{UNPRIVILEGED} {folder}"
        raise Refused(
            f"{folder} belongs to root, and containers do not run as root: {advice}, STORE=… or RUNTIME=native"
        )
    return {"TUNESHIP_STORE": str(store), "TUNESHIP_UID": str(owner.st_uid), "TUNESHIP_GID": str(owner.st_gid)}


def look(environment: Mapping[str, str]) -> Machine:
    """What is here. Asks nothing of Docker when RUNTIME=native."""
    wanted, wish = environment.get("RUNTIME") or "auto", environment.get("ACCELERATOR") or "auto"
    if wanted == "native" or not shutil.which("docker"):
        return Machine(False, False, False, wanted, wish)
    info = _output("docker", "info", "--format", "{{json .Runtimes}}")
    if not info or not _output("docker", "compose", "version"):
        return Machine(False, False, False, wanted, wish)
    has_gpu = "nvidia" in json.loads(info) and bool(_output("nvidia-smi", "-L"))
    project = environment.get("COMPOSE_PROJECT_NAME") or "tuneship"
    labels = (f"label=com.docker.compose.project={project}", "label=com.docker.compose.oneoff=False")
    up = _output("docker", "ps", "--format", "{{.Names}}", *(part for label in labels for part in ("-f", label)))
    return Machine(True, has_gpu, "-server-" in up, wanted, wish)


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def main() -> int:
    command, *options = sys.argv[1:] or ["help"]
    if command not in (*PROGRAMS, *OPERATIONS):
        print(__doc__, file=sys.stderr)
        return 2
    examined = command in EXAMINED and NO_DOCTOR not in options
    options = [option for option in options if option != NO_DOCTOR]
    store = Path(find(options, "--store") or "models")
    try:
        machine = look(os.environ)
        todo = plan(command, options, machine)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    if todo.said:
        print(todo.said, file=sys.stderr)
    if examined and unfit(command, machine, store):
        return 1
    return execute(todo)


def unfit(command: str, machine: Machine, store: Path) -> bool:
    """Whether the doctor found what stops this command."""
    import doctor

    containers = choose_runtime(command, machine)[0] == "docker"
    cuda = containers and accelerator(machine)[0] == "cuda"
    return doctor.stops(command, containers=containers, cuda=cuda, store=store)


def execute(todo: Plan) -> int:
    """The last command replaces this process, so that Ctrl-C is its own; returns the code of one that cannot."""
    environment = {**os.environ, **todo.environment}
    os.chdir(ROOT)
    *first, last = todo.commands
    for argv in first:
        if code := subprocess.run(argv, env=environment, check=False).returncode:
            return code
    if not todo.afterwards:
        os.execvpe(last[0], last, environment)
    code = subprocess.run(last, env=environment, check=False).returncode
    if not code:
        print(todo.afterwards, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
