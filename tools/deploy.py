#!/usr/bin/env python3
"""Brings Tuneship to hosts over ssh: checks the host, copies the kit, builds and starts it, waits until it generates.

usage: tools/deploy.py USER@HOST … --profile serve-llamacpp [--profile train] [--cpu] [--send-images] [--rollback]

A host keeps its releases in a folder (~/tuneship): `current` and `previous` name the last two, `--rollback` lets them
change places. The host's own .env lies beside them and is never overwritten. The store is a volume of the host's
engine and stays. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import doctor

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (
    "compose.yaml",
    "compose.gpu.yaml",
    ".env.example",
    ".dockerignore",
    "docker",
    "requirements",
    "configs",
    "data",
)
SHIPPED += ("modelstore", "trainer", "server", "clients", "tools", "Makefile")
DRIVER = 580  # CUDA 13.0
PROFILES = ("train", "serve-llamacpp", "serve-vllm", "observability")

CHECK = """
fail() { echo "$1" >&2; exit 3; }
docker info >/dev/null 2>&1 || fail "no Docker engine answers to this user (docker info)"
docker compose version >/dev/null 2>&1 || fail "the compose plugin of Docker is missing"
free=$(df -Pk "$(docker info -f '{{.DockerRootDir}}')" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge %(needed_gb)d ] || fail "$free GB are free where Docker keeps its data; %(needed_gb)d are needed"
"""
CHECK_GPU = """
command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi, so no NVIDIA driver"
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
[ "${driver%%%%.*}" -ge %(driver)d ] || fail "the NVIDIA driver is $driver; CUDA 13.0 needs %(driver)d or newer"
docker info -f '{{json .Runtimes}}' | grep -q nvidia || fail "the NVIDIA Container Toolkit is not set up in Docker"
"""
CHECK_PORT = """
port=$(sed -n 's/^TUNESHIP_PORT=//p' .env 2>/dev/null || true); port=${port:-8000}
ours=$(docker ps -q -f label=com.docker.compose.project=${COMPOSE_PROJECT_NAME:-tuneship})
if [ -z "$ours" ] && (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; then
  fail "port $port is taken: set TUNESHIP_PORT in the host's .env"
fi
"""


class Failed(Exception):
    """What went wrong on which host."""


@dataclass(frozen=True)
class Wish:
    """What to start, and how to reach hosts."""

    profiles: tuple[str, ...]
    gpu: bool
    send_images: bool
    ssh: tuple[str, ...]
    folder: str = "tuneship"


def deploy(host: str, wish: Wish, release: str) -> None:
    """Raises Failed; the release that ran before goes on running unless the new one could be started."""
    say(f"{host}: checking")
    remote(host, wish, check_script(wish))
    say(f"{host}: copying {release}")
    copy(host, wish, release)
    remote(host, wish, prepare_script(release))
    if wish.send_images:
        say(f"{host}: sending the images")
        send_images(host, wish, release)
    say(f"{host}: building and starting")
    try:
        remote(host, wish, start_script(wish, f"releases/{release}", build=not wish.send_images))
    except Failed as failure:
        raise Failed(f"{failure}\n`current` is unchanged; --rollback starts it again.") from None
    remote(host, wish, switch_script(release))
    say_how_to_ask(host)


def check_script(wish: Wish) -> str:
    """What a host has to have, in the shell."""
    facts = {"needed_gb": 60 if wish.gpu else 8, "driver": DRIVER}
    return CHECK % facts + (CHECK_GPU % facts if wish.gpu else "") + (CHECK_PORT if serves(wish) else "")


def prepare_script(release: str) -> str:
    """The host's own .env, and the tag of this release's images."""
    return f"""
[ -f .env ] || cp releases/{release}/.env.example .env
{{ grep -v '^TUNESHIP_TAG=' .env; echo TUNESHIP_TAG={release}; }} > releases/{release}/.env
"""


def start_script(wish: Wish, folder: str, build: bool) -> str:
    """Train first if asked to, then serve; ends when a token was generated."""
    files = " -f compose.yaml" + (" -f compose.gpu.yaml" if wish.gpu else "")
    profiles = "".join(f" --profile {shlex.quote(name)}" for name in wish.profiles)
    up = f"docker compose{files}{profiles} up --detach --wait {'--build' if build else '--no-build'}"
    if not serves(wish):
        up = f"docker compose{files}{profiles} up --detach {'--build' if build else '--no-build'}"
    return f"cd {folder}\n{up}\n"


def switch_script(release: str) -> str:
    """`current` names this release and `previous` the one before."""
    keep = 'old=$(readlink current || true)\n[ -z "$old" ] || ln -sfn "$old" previous\n'
    return f"{keep}ln -sfn releases/{release} current\n"


ROLLBACK = """
[ -e previous ] || { echo "there is no release before this one" >&2; exit 3; }
old=$(readlink current); ln -sfn "$(readlink previous)" current; ln -sfn "$old" previous
"""


def serves(wish: Wish) -> bool:
    return any(name.startswith("serve-") for name in wish.profiles)


def rollback(host: str, wish: Wish) -> None:
    """The release before, with its images."""
    remote(host, wish, ROLLBACK)
    remote(host, wish, start_script(wish, "current", build=False))
    say_how_to_ask(host)


def remote(host: str, wish: Wish, script: str) -> None:
    """Run a script on the host; its words go to this terminal."""
    place = shlex.quote(wish.folder)
    whole = f"set -eu\nmkdir -p {place}\ncd {place}\n{script}"
    done = subprocess.run([*wish.ssh, host, "bash", "-s"], input=whole, text=True, check=False)
    if done.returncode:
        raise Failed(f"{host}: the step above ended with exit code {done.returncode}.")


def copy(host: str, wish: Wish, release: str) -> None:
    """Sources, configs and data as an archive through ssh."""
    place = shlex.quote(f"{wish.folder}/releases/{release}")
    target = f"mkdir -p {place} && tar xzf - -C {place}"
    archive = ["tar", "czf", "-", "--exclude=__pycache__", "-C", str(ROOT), *SHIPPED]
    pipe(archive, [*wish.ssh, host, target], host)


def send_images(host: str, wish: Wish, release: str) -> None:
    """The images that are built here, with this release's tag."""
    kind, built = "cuda" if wish.gpu else "cpu", os.environ.get("TUNESHIP_TAG", "local")
    wanted = {"train": f"trainer:{{}}-{kind}", "serve-llamacpp": f"server-llamacpp:{{}}-{kind}"}
    wanted |= {"serve-vllm": "server-vllm:{}-cuda"}
    patterns = [*(wanted[name] for name in wish.profiles if name in wanted), "clients:{}-cpu"]
    names = [f"tuneship/{pattern.format(release)}" for pattern in patterns]
    for pattern, name in zip(patterns, names, strict=True):
        tagged = subprocess.run(["docker", "tag", f"tuneship/{pattern.format(built)}", name], check=False)
        if tagged.returncode:
            raise Failed(f"{name} is not built here: docker compose --profile '*' build")
    pipe(["docker", "save", *names], [*wish.ssh, host, "docker load --quiet"], host)


def pipe(source: list[str], sink: list[str], host: str) -> None:
    with subprocess.Popen(source, stdout=subprocess.PIPE) as giving:
        taken = subprocess.run(sink, stdin=giving.stdout, check=False).returncode
    if giving.returncode or taken:
        raise Failed(f"{host}: copying failed.")


def say_how_to_ask(host: str) -> None:
    say(f"""{host}: ready. The endpoint listens on the host's own 127.0.0.1; from here:
  ssh -N -L 8000:127.0.0.1:8000 {host} &
  curl http://127.0.0.1:8000/v1/models""")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", nargs="+", metavar="USER@HOST")
    parser.add_argument("--profile", action="append", required=True, choices=PROFILES)
    parser.add_argument("--cpu", action="store_true", help="without GPUs")
    parser.add_argument(
        "--send-images", action="store_true", help="images built here, for hosts without a package index"
    )
    parser.add_argument("--rollback", action="store_true")
    parser.add_argument("--folder", default="tuneship", help="on the host (default: ~/tuneship)")
    parser.add_argument("--no-doctor", action="store_true", help="start without a look at this machine")
    parser.add_argument("--ssh", default="ssh", help="as in --ssh 'ssh -p 2222'")
    arguments = parser.parse_args()
    if not (arguments.no_doctor or arguments.rollback) and doctor.stops("deploy"):
        return 1
    ssh = tuple(shlex.split(arguments.ssh))
    wish = Wish(tuple(arguments.profile), not arguments.cpu, arguments.send_images, ssh, arguments.folder)
    release = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        for host in arguments.hosts:
            if arguments.rollback:
                rollback(host, wish)
            else:
                deploy(host, wish, release)
    except Failed as failure:
        say(f"error: {failure}")
        return 1
    if len(arguments.hosts) > 1:
        names = " ".join(f"{host.rpartition('@')[2]}:8000" for host in arguments.hosts)
        say(f"one endpoint for all: tools/balancer.py --tls {names} > haproxy.cfg   (docs/containers.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
