"""Where a command runs, and as what: the plan of tools/runtime.py for machines of every kind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runtime() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runtime", ROOT / "tools" / "runtime.py")
    assert spec and spec.loader
    module = sys.modules["runtime"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path) -> str:
    folder = tmp_path / "models"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 1234, 1234)
    return str(folder)


def machine(runtime: ModuleType, **facts: Any) -> Any:
    return runtime.Machine(**({"has_engine": True, "has_gpu": False, "serves": False} | facts))


@pytest.mark.parametrize(
    ("command", "facts", "expected"),
    [
        ("train", {"has_engine": False}, ("native", "no Docker engine answers")),
        ("train", {}, ("docker", "a Docker engine answers")),
        ("eval", {}, ("native", "no container serves")),
        ("eval", {"serves": True}, ("docker", "a Docker engine answers")),
        ("train", {"wanted": "native"}, ("native", "RUNTIME=native")),
        ("report", {"wanted": "docker"}, ("docker", "RUNTIME=docker")),
    ],
)
def test_the_runtime_and_its_reason(
    runtime: ModuleType, command: str, facts: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert runtime.choose_runtime(command, machine(runtime, **facts)) == expected


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"has_engine": False, "wanted": "docker"}, "no Docker engine"),
        ({"wanted": "podman"}, "auto, docker and native"),
        ({"accelerator": "tpu"}, "auto, cpu and cuda"),
    ],
)
def test_a_wrong_wish_is_refused(runtime: ModuleType, facts: dict[str, Any], message: str, store: str) -> None:
    with pytest.raises(runtime.Refused, match=message):
        runtime.plan("train", ["--store", store], machine(runtime, **facts))


def test_native_makes_the_environment_and_hands_the_options_on(runtime: ModuleType) -> None:
    plan = runtime.plan("eval", ["--url", "u", "--json"], machine(runtime, has_engine=False))
    setup, run = plan.commands
    assert setup[1:] == [str(ROOT / "tools/envs.py"), "clients"]
    assert run == [str(ROOT / ".venv/clients/bin/python"), "-m", "clients", "eval", "--url", "u", "--json"]
    assert plan.said == "runtime: native, because no Docker engine answers"


def test_train_mounts_what_lies_elsewhere_and_runs_as_the_owner(
    runtime: ModuleType, store: str, tmp_path: Path
) -> None:
    data = tmp_path / "my.jsonl"
    data.write_text("{}")
    options = ["--config", "configs/demo.toml", "--store", store, "--data", str(data), "--again"]
    plan = runtime.plan("train", options, machine(runtime))
    (run,) = plan.commands
    assert run[-7:] == ["trainer", "train", "--config", "configs/demo.toml", "--data", str(data), "--again"]
    assert run[run.index("--volume") + 1] == f"{data}:{data}:ro" and run.count("--volume") == 1
    owner = Path(store).stat()
    assert plan.environment == {
        "TUNESHIP_STORE": store,
        "TUNESHIP_UID": str(owner.st_uid),
        "TUNESHIP_GID": str(owner.st_gid),
    }
    assert "cpu" in plan.said and "compose.gpu.yaml" not in " ".join(run)


def test_serve_turns_its_options_into_compose_variables(runtime: ModuleType, store: str) -> None:
    options = ["2026", "--store", store, "--host", "0.0.0.0", "--port", "9", "--slots", "4", "--api-key-file", "k"]
    options += ["--allowed-signers", "s"]
    plan = runtime.plan("serve", options, machine(runtime, has_gpu=True))
    (up,) = plan.commands
    assert (
        up[-5:] == ["up", "--build", "--detach", "--wait", "server-llamacpp"] and str(ROOT / "compose.gpu.yaml") in up
    )
    said = {name: plan.environment[f"TUNESHIP_{name}"] for name in ("BIND", "PORT", "RUN", "SERVE_ARGS", "KEYS_FILE")}
    keys = str(Path("k").resolve())
    assert said == {"BIND": "0.0.0.0", "PORT": "9", "RUN": "2026", "SERVE_ARGS": "--slots 4", "KEYS_FILE": keys}
    assert plan.environment["TUNESHIP_ALLOWED_SIGNERS"] == str(Path("s").resolve())
    assert "http://0.0.0.0:9/v1" in plan.afterwards


def test_vllm_is_a_service_of_its_own_and_others_are_refused(runtime: ModuleType, store: str) -> None:
    plan = runtime.plan("serve", ["--store", store, "--engine", "vllm"], machine(runtime))
    assert plan.commands[0][-1] == "server-vllm" and "serve-vllm" in plan.commands[0]
    with pytest.raises(runtime.Refused, match="llamacpp and vllm"):
        runtime.plan("serve", ["--store", store, "--engine", "other"], machine(runtime))


def test_clients_reach_the_container_that_serves(runtime: ModuleType, store: str) -> None:
    here = runtime.plan("eval", ["--store", store, "--url", "http://127.0.0.1:8000/v1"], machine(runtime, serves=True))
    assert here.commands[0][-4:] == ["eval", "eval", "--url", "http://server:8000/v1"]
    there = runtime.plan("bench", ["--store", store, "--url", "http://gpu1:8000/v1"], machine(runtime, serves=True))
    assert there.commands[0][-2:] == ["--url", "http://gpu1:8000/v1"]


def test_results_elsewhere_are_written_there(runtime: ModuleType, store: str, tmp_path: Path) -> None:
    options = ["--store", store, "--out", str(tmp_path / "new")]
    (run,) = runtime.plan("eval", options, machine(runtime, serves=True)).commands
    assert run[run.index("--volume") + 1] == f"{tmp_path / 'new'}:{tmp_path / 'new'}"
    owners = {path.stat().st_uid for path in (tmp_path / "new", Path(store))}
    assert len(owners) == 1, "the container could not write there"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders that belong to root")
def test_a_store_of_root_is_refused_with_advice(runtime: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(runtime.Refused, match="chown -R 10001:10001"):
        runtime.plan("train", ["--store", str(tmp_path)], machine(runtime))


def test_a_file_that_is_not_there_is_named(runtime: ModuleType, store: str) -> None:
    with pytest.raises(runtime.Refused, match="no file nowhere"):
        runtime.plan("train", ["--store", store, "--data", "nowhere.jsonl"], machine(runtime))


def test_make_says_which_runtime_it_chose() -> None:
    done = subprocess.run(["make", "ps", "RUNTIME=native"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "RUNTIME=native" in done.stderr and "Traceback" not in done.stderr
