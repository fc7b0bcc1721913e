"""tools/deploy.py over a real ssh connection: to this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from compose import ROOT, Project, ask, docker

SSHD = "/usr/sbin/sshd"
PROJECT = "tuneship-test-deployed"


@pytest.fixture(scope="module")
def ssh(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ssh command that reaches this machine, through a server of the test's own."""
    if not Path(SSHD).exists():
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "openssh-server", "openssh-client"]
        subprocess.run(
            install, check=True, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "SetEnv": f"DOCKER_HOST={address} COMPOSE_PROJECT_NAME={PROJECT}",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    trusting = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    yield f"ssh -p {port} -i {folder / 'user'} {trusting}"
    server.terminate()
    server.wait()


def deploy(ssh: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "tools/deploy.py"), "root@127.0.0.1", "--cpu", "--profile", "serve-llamacpp"]
    wish = ["--ssh", ssh, "--folder", str(folder), "--send-images", *more]
    environment = {**os.environ, "TUNESHIP_TAG": "test"}
    return subprocess.run([*argv, *wish], capture_output=True, text=True, env=environment, check=False)


def test_it_serves_on_the_host_and_goes_back(
    ssh: str, project: Callable[..., Project], shared_store: Path, tmp_path: Path
) -> None:
    kit = project("deployed")
    host = tmp_path / "host"
    host.mkdir()
    port = kit.environment["TUNESHIP_PORT"]
    (host / ".env").write_text(f"TUNESHIP_STORE={shared_store}\nTUNESHIP_PORT={port}\n")
    try:
        for _ in range(2):
            done = deploy(ssh, host)
            assert done.returncode == 0, done.stderr
            assert "ready" in done.stderr and ask(f"{kit.url}/ready")[0] == 200
        second = _served_image()
        done = deploy(ssh, host, "--rollback")
        assert done.returncode == 0, done.stderr
        assert ask(f"{kit.url}/ready")[0] == 200 and _served_image() != second
        assert (host / "current").resolve() != (host / "previous").resolve()
        assert (host / ".env").read_text().startswith("TUNESHIP_STORE="), "the host's own settings were changed"
    finally:
        kit.down()


def _served_image() -> str:
    labels = [
        "-f",
        f"label=com.docker.compose.project={PROJECT}",
        "-f",
        "label=com.docker.compose.service=server-llamacpp",
    ]
    return docker("ps", "--format", "{{.Image}}", *labels)


def test_a_host_without_a_release_has_nothing_to_go_back_to(ssh: str, tmp_path: Path) -> None:
    done = deploy(ssh, tmp_path / "empty", "--rollback")
    assert done.returncode == 1 and "no release before this one" in done.stderr and "Traceback" not in done.stderr


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    done = deploy("ssh -p 1 -o ConnectTimeout=2", tmp_path / "none")
    assert done.returncode == 1 and "error: root@127.0.0.1" in done.stderr and "Traceback" not in done.stderr
