"""The real compose.yaml on a real engine: train, publish, serve, evaluate, and what goes wrong on the way."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from compose import ALL, SERVE, Interruptions, Project, ask, docker, send, wait_for

TRAIN = ("--profile", "train")
STOPPED = 3  # the trainer's exit code after a checkpoint that it was asked for
Make = Callable[..., Project]


def asked(kit: Project, model: str, key: str = "") -> tuple[int, str]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "How long? (0)"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    status, answer = ask(f"{kit.url}/v1/chat/completions", body, key)
    return status, answer["choices"][0]["message"]["content"] if status == 200 else answer["error"]["code"]


def runs(kit: Project) -> list[str]:
    listing = ["-m", "modelstore", "--store", "models", "runs", "--json"]
    entry = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "python3", "eval", *listing)
    return [run["id"] for run in json.loads(kit.must("--profile", "eval", *entry))]


def test_up_trains_publishes_and_serves_what_was_trained(running: Project) -> None:
    trainer, server = running.container("trainer"), running.container("server-llamacpp")
    assert trainer["State"]["ExitCode"] == 0 and "published" in running.log("trainer")
    assert server["State"]["Health"]["Status"] == "healthy"
    (run_id,) = runs(running)
    _, models = ask(f"{running.url}/v1/models")
    assert run_id in [model["id"] for model in models["data"]]
    assert asked(running, "tuned") == (200, "It takes 9 days.")
    assert "9 days" not in asked(running, "base")[1]


def test_every_container_is_locked_down(running: Project) -> None:
    for service in ("trainer", "server-llamacpp"):
        found = running.container(service)
        host = found["HostConfig"]
        assert found["Config"]["User"] == "10001:10001"
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] and host["PidsLimit"] and host["LogConfig"]["Config"]["max-size"]
        assert not found["HostConfig"]["Privileged"]
    server = running.container("server-llamacpp")
    (store,) = (mount for mount in server["Mounts"] if mount["Destination"] == "/app/models")
    assert not store["RW"], "a server must not be able to change what it serves"
    assert {each["HostIp"] for ports in server["HostConfig"]["PortBindings"].values() for each in ports} == {
        "127.0.0.1"
    }


def test_a_read_only_root_keeps_writers_out(running: Project) -> None:
    done = running.compose(*SERVE, "exec", "-T", "server-llamacpp", "touch", "/app/models/x", "/app/x", "/etc/x")
    assert done.returncode != 0
    assert done.stderr.count("Read-only file system") == 3


def test_nothing_of_the_build_stays_in_the_images(running: Project) -> None:
    for name in ("trainer", "server-llamacpp", "clients"):
        left = "-name gcc -o -name pip -o -path '*/.cache/*' -o -name '*.whl' -o -path '/run/secrets/*'"
        find = f"ls /etc/pip.conf; find /opt /root /home /usr/bin /wheels /run/secrets -type f \\( {left} \\)"
        image = f"tuneship/{name}:test-cpu"
        assert not docker("run", "--rm", "--entrypoint", "sh", image, "-c", f"{find} 2>/dev/null; true"), image


def test_the_health_check_asks_for_a_token_and_not_for_a_port(running: Project) -> None:
    """With both engines stopped the port is open and /health answers; the container has to become unhealthy."""
    server = running.container("server-llamacpp")
    engines = [pid for pid in _processes(server["Id"]) if b"-ngl" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(engines) == 2
    send(signal.SIGSTOP, *engines)
    try:
        wait_for(lambda: _health(running) == "unhealthy", 150, "unhealthy")
        assert ask(f"{running.url}/health")[0] == 200
    finally:
        send(signal.SIGCONT, *(pid for pid in engines if Path(f"/proc/{pid}").exists()))
    wait_for(lambda: _health(running) == "healthy", 90, "healthy again")


def _health(kit: Project) -> str:
    return str(kit.container("server-llamacpp")["State"]["Health"]["Status"])


def _processes(container_id: str) -> list[int]:
    return [int(line.split()[0]) for line in docker("top", container_id, "-eo", "pid").splitlines()[1:]]


def test_eval_writes_its_report_to_the_volume(running: Project) -> None:
    said = running.must("--profile", "eval", "run", "--rm", "-T", "--no-deps", "eval", timeout_s=120)
    (run_id,) = runs(running)
    assert f"models/reports/{run_id}/" in said
    server = running.container("server-llamacpp")["Id"]
    report = docker("exec", server, "sh", "-c", f"cat models/reports/{run_id}/*/report.json")
    summary = json.loads(report)["summary"]
    assert summary["tuned"]["strict"] == 1.0 and summary["tuned"]["failed"] == 0 and summary["base"]["strict"] < 1.0


def test_a_second_up_trains_nothing(running: Project) -> None:
    before = runs(running)
    running.must(*ALL, "up", "--detach", "--wait", "--no-build", timeout_s=200)
    assert runs(running) == before
    assert "already trained" in running.log("trainer").splitlines()[-20:][0] or "already trained" in running.log(
        "trainer"
    )


def test_a_killed_server_comes_back_and_answers(running: Project) -> None:
    before = running.container("server-llamacpp")
    send(signal.SIGKILL, before["State"]["Pid"])

    def restarted() -> bool:
        return bool(running.container("server-llamacpp")["RestartCount"] > before["RestartCount"])

    wait_for(restarted, 30, "a restart")
    wait_for(lambda: _health(running) == "healthy", 90, "healthy after the restart")
    assert asked(running, "tuned") == (200, "It takes 9 days.")


def test_stop_drains_the_running_answer(running: Project) -> None:
    running.must(*SERVE, "stop", "server-llamacpp", timeout_s=60)
    state = running.container("server-llamacpp")["State"]
    assert state["ExitCode"] == 0, "killed instead of drained"
    running.must(*SERVE, "up", "--detach", "--wait", "--no-build", "--no-deps", "server-llamacpp")


def test_a_stopped_and_a_killed_trainer_went_on_where_they_were(interrupted: tuple[Project, Interruptions]) -> None:
    kit, seen = interrupted
    assert seen.exit_code_after_stop == STOPPED, "it was killed instead of leaving a checkpoint"
    assert seen.steps_before_stop >= 1 and seen.steps_after_start > seen.steps_before_stop
    (run_id,) = runs(kit)
    manifest = f"models/runs/{run_id}/manifest.json"
    described = json.loads(docker("exec", kit.container("server-llamacpp")["Id"], "cat", manifest))
    assert described["training"]["resumed_from_step"] >= 1


def _succeeds(*arguments: str) -> bool:
    import subprocess

    return subprocess.run(["docker", *arguments], capture_output=True, check=False).returncode == 0


def test_a_failed_trainer_starts_no_server(project: Make) -> None:
    kit = project("failed", TUNESHIP_TRAIN_ARGS="--data data/no-such.jsonl")
    done = kit.compose(*ALL, "up", "--detach", "--wait", "--no-build", timeout_s=120)
    assert done.returncode != 0 and "trainer" in done.stderr
    assert "no-such.jsonl" in kit.log("trainer") and "Traceback" not in kit.log("trainer")
    assert not kit.exists("server-llamacpp")


def test_a_failed_trainer_starts_no_server_for_an_earlier_run_either(project: Make, shared_store: Path) -> None:
    """The operator who wants the earlier run starts the serving profile alone."""
    wish = {"TUNESHIP_STORE": str(shared_store), "TUNESHIP_TRAIN_ARGS": "--data data/no-such.jsonl"}
    kit = project("failed-later", **wish)
    assert kit.compose(*ALL, "up", "--detach", "--wait", "--no-build", timeout_s=120).returncode != 0
    assert kit.container("trainer")["State"]["ExitCode"] not in (0, STOPPED)
    assert not kit.exists("check") and not kit.exists("server-llamacpp")
    kit.must(*SERVE, "up", "--detach", "--wait", "--no-build")
    assert asked(kit, "tuned") == (200, "It takes 9 days.")


def test_a_store_of_another_user_is_refused_with_advice(project: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    store = tmp_path / "store"
    store.mkdir(mode=0o755)
    kit = project("owner", TUNESHIP_STORE=str(store))
    assert kit.compose(*TRAIN, "up", "--no-build", "--exit-code-from", "trainer", "trainer").returncode == 2
    said = kit.log("trainer")
    assert "permission denied. The store must belong to the user that trains" in said and "Traceback" not in said


def test_a_full_disk_is_refused_before_training(project: Make, running: Project) -> None:
    kit = project("full")
    options = [
        "--driver",
        "local",
        "--opt",
        "type=tmpfs",
        "--opt",
        "device=tmpfs",
        "--opt",
        "o=size=400m,uid=10001,gid=10001",
    ]
    docker("volume", "create", *options, "tuneship-test-full_store")
    done = kit.compose(*TRAIN, "up", "--no-build", "--exit-code-from", "trainer", "trainer", timeout_s=180)
    assert done.returncode in (1, 2)
    said = kit.log("trainer")
    assert "free" in said and "Traceback" not in said, said


def test_without_a_network_it_serves_and_evaluates(project: Make, running: Project, shared_store: Path) -> None:
    """A network with no way out: names resolve among the services, nothing else can be reached."""
    kit = project("offline", TUNESHIP_STORE=str(shared_store), HF_HUB_OFFLINE="1")
    kit.files = ["compose.yaml", "tests/containers/offline.yaml"]
    kit.must(*ALL, "up", "--detach", "--wait", "--no-build", timeout_s=200)
    server = kit.container("server-llamacpp")["Id"]
    reach = "import socket; socket.create_connection(('1.1.1.1', 443), 3)"
    assert not _succeeds("exec", server, "python3", "-c", reach)
    said = kit.must("--profile", "eval", "run", "--rm", "-T", "--no-deps", "eval", timeout_s=120)
    assert "report:" in said


def test_keys_from_a_file_are_asked_for_and_used(project: Make, shared_store: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice k-0123456789abcdef\n")
    keys.chmod(0o644)
    kit = project("keys", TUNESHIP_STORE=str(shared_store), TUNESHIP_KEYS_FILE=str(keys))
    kit.must(*SERVE, "up", "--detach", "--wait", "--no-build")
    assert asked(kit, "tuned") == (401, "invalid_api_key")
    assert asked(kit, "tuned", "k-0123456789abcdef") == (200, "It takes 9 days.")
    said = kit.must("--profile", "eval", "run", "--rm", "-T", "--no-deps", "eval", timeout_s=120)
    assert "report:" in said
    assert "k-0123456789abcdef" not in kit.log("server-llamacpp")


def test_down_leaves_nothing(project: Make) -> None:
    kit = project("gone", TUNESHIP_TRAIN_ARGS="--data data/no-such.jsonl")
    kit.compose(*TRAIN, "up", "--no-build", "--exit-code-from", "trainer", "trainer")
    kit.must("--profile", "*", "down", "--volumes")
    for what in (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q")):
        assert not docker(*what, "-f", f"label=com.docker.compose.project={kit.name}")


@pytest.mark.parametrize("profile", ["train", "serve-llamacpp", "serve-vllm", "eval", "observability", "proxy"])
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_every_profile_is_valid(engine: None, profile: str, files: list[str]) -> None:
    Project("tuneship", {}, files).must("--profile", profile, "config", "--quiet")


@pytest.mark.parametrize("profile", ["head", "worker", "serve"])
def test_the_file_for_several_nodes_is_valid(engine: None, profile: str) -> None:
    wish = {"MODEL": "/srv/model", "NODE_IP": "10.0.0.1"}
    Project("tuneship-nodes", wish, ["deploy/multi-node/compose.yaml"]).must("--profile", profile, "config", "--quiet")
