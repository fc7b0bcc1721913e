"""The doctor on this very machine, and on machines that something is wrong with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import doctor  # noqa: E402  a script, not a package
import doctor_machine as checks  # noqa: E402
import doctor_training as training  # noqa: E402

PROGRAMS = {
    "old driver": "echo 'NVIDIA L4, 535.183.01, 20000 MiB, 23034 MiB'",
    "silent driver": "exit 9",
    "new driver": "echo 'NVIDIA L4, 580.65.06, 20000 MiB, 23034 MiB'",
}


def stand_in(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, first on the PATH."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_this_machine_is_fit_and_json_says_the_same(tmp_path: Path) -> None:
    argv = [sys.executable, "tools/doctor.py", "--store", str(tmp_path / "not" / "yet"), "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {finding["name"]: finding["status"] for finding in json.loads(done.stdout)}
    assert done.returncode == 0 and "failure" not in found.values()
    assert found["environment clients"] == found["store"] == found["clock"] == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fault", "status"), [("old driver", "failure"), ("silent driver", "failure")])
def test_an_unfit_driver_is_a_failure_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, status: str
) -> None:
    stand_in(tmp_path, "nvidia-smi", PROGRAMS[fault], monkeypatch)
    assert (checks.gpu().status, bool(checks.gpu().remedy)) == (status, True)


def test_an_old_driver_is_named_with_every_image_that_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, "nvidia-smi", PROGRAMS["old driver"], monkeypatch)
    assert all(name in checks.gpu().seen for name in ("trainer (CUDA 13", "server-llamacpp (CUDA 13", "server-vllm"))
    assert "580" in checks.gpu().remedy


def test_a_bundle_without_sources_still_checks_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "nvidia-smi", PROGRAMS["old driver"], monkeypatch)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    assert checks.gpu().status == "failure"


def test_an_old_compose_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "docker", "echo 2.17.3", monkeypatch)
    assert (checks.compose().status, "2.20" in checks.compose().remedy) == ("failure", True)
    stand_in(tmp_path, "docker", "echo v2.40.0-desktop.1", monkeypatch)
    assert checks.compose().status == "ok"


def test_a_fit_driver_without_the_container_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "nvidia-smi", PROGRAMS["new driver"], monkeypatch)
    stand_in(tmp_path, "docker", 'case $1 in info) echo "26.1.5 {\\"runc\\":{}}";; *) echo 2.29.1;; esac', monkeypatch)
    assert checks.gpu().status == "ok"
    assert "nvidia-container-toolkit" in checks.docker().remedy


def test_the_llama_cpp_that_serves_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ROOT", tmp_path)  # nothing was compiled
    monkeypatch.delenv("TUNESHIP_LLAMA_SERVER", raising=False)
    monkeypatch.delenv("TUNESHIP_LLAMACPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (checks.llamacpp().status, checks.llamacpp().seen.partition(",")[0]) == ("ok", "the package's")
    stand_in(tmp_path, "nvidia-smi", PROGRAMS["new driver"], monkeypatch)
    assert (checks.llamacpp().status, "make llamacpp" in checks.llamacpp().remedy) == ("warning", True)
    stand_in(tmp_path, "llama-server", "exit 0", monkeypatch)
    assert (checks.llamacpp().status, "on the PATH" in checks.llamacpp().seen) == ("ok", True)
    monkeypatch.setenv("TUNESHIP_LLAMACPP", str(tmp_path))
    assert checks.llamacpp().seen == f"{tmp_path}/llama-server, TUNESHIP_LLAMACPP"
    monkeypatch.setenv("TUNESHIP_LLAMA_SERVER", str(tmp_path / "gone"))
    assert (checks.llamacpp().status, str(tmp_path / "gone") in checks.llamacpp().remedy) == ("failure", True)


def test_a_port_in_use_is_a_warning() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        assert (checks.port(number).status, checks.port(number).remedy.split(",")[0]) == (
            "warning",
            f"make serve PORT={number + 1}",
        )


def test_a_store_that_cannot_be_written_and_one_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_folder = Path("/proc/self")  # exists, and takes no files, for root neither
    assert [finding.status for finding in checks.store(no_folder)][-1] == "failure"
    monkeypatch.setattr(checks, "LEAST_DISK_BYTES", 1 << 62)
    assert next(checks.store(tmp_path)).status == "failure"


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "click-8.0.0.dist-info").mkdir(parents=True)
    (packages / "Some_Thing-1.0+cpu.dist-info").mkdir()
    lock = tmp_path / "x.lock"
    lock.write_text("click==8.5.1\nsome-thing==1.0\nrich==15.0.0\n")
    assert checks.other_versions(tmp_path, lock) == [
        "click 8.0.0 instead of 8.5.1",
        "rich is missing instead of 15.0.0",
    ]


def config(folder: Path, base: str) -> Path:
    path = folder / "wish.toml"
    path.write_text(f'name = "wish"\n[model]\nbase = "{base}"\n[data]\npath = "x.jsonl"\n[training]\nmax_steps = 1\n')
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A hub that has one public and one gated model; the cache is empty."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            codes = {"/api/models/some/open": 200, "/api/models/some/gated": 401}
            self.send_response(codes.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield server.server_address[0]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("base", "status", "remedy"),
    [
        ("hub:some/open", "ok", ""),
        ("hub:some/gated@main", "failure", "HF_TOKEN"),
        ("hub:some/typo", "failure", "check the name"),
        ("no/such/folder", "failure", "model.base"),
    ],
)
def test_whether_the_base_can_be_had(hub: str, tmp_path: Path, base: str, status: str, remedy: str) -> None:
    found = training.base(config(tmp_path, base), tmp_path / "store")
    assert (found.status, remedy in found.remedy) == (status, True), found


def test_a_hub_that_is_not_there_and_a_cache_that_makes_it_needless(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = config(tmp_path, "hub:some/open")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert "mirror" in training.base(wish, tmp_path).remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "unset HF_HUB_OFFLINE" in training.base(wish, tmp_path).remedy
    cache = tmp_path / "cache" / "hub" / "models--some--open"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").write_text("")
    assert training.base(wish, tmp_path).status == "failure", "half a download is no model"
    (snapshot / "model-2.safetensors").write_text("")
    assert training.base(wish, tmp_path).status == "ok"


def test_the_quick_part_is_silent_and_fast_where_nothing_is_wrong(tmp_path: Path) -> None:
    started = time.process_time()
    for command in ("train", "serve", "deploy"):
        assert not doctor.failed(doctor.quick(command, store=tmp_path)), command
    assert time.process_time() - started < 1


def test_the_quick_part_stops_what_would_fail_and_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_only = Path("/proc/self")  # takes no files, for root neither
    assert doctor.stops("train", store=read_only)
    assert "--no-doctor" in capsys.readouterr().err
    assert not doctor.stops("serve", store=read_only), "a server only reads"
    stand_in(tmp_path, "nvidia-smi", PROGRAMS["old driver"], monkeypatch)
    stand_in(tmp_path, "docker", "echo 2.29.1", monkeypatch)
    assert not doctor.stops("train", store=tmp_path), "the processor is left"
    assert doctor.stops("serve", containers=True, cuda=True, store=tmp_path)
    assert not doctor.stops("serve", containers=True, cuda=False, store=tmp_path)
    monkeypatch.setattr(checks, "LEAST_DISK_BYTES", 1 << 62)
    assert not doctor.stops("train", store=tmp_path), "the trainer knows what its config needs"


def test_without_a_gpu_its_probes_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.shutil, "which", lambda _: None)
    assert [(found.status, found.seen) for found in training.accelerator()] == [
        ("ok", "skipped: no NVIDIA GPU is here")
    ] * 2


@pytest.mark.parametrize("problem", ["", "ptxas is missing"])
def test_what_the_probes_find_is_said(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"problem": problem, "seen": "1024 sums are right", "remedy": "install gcc"}
    monkeypatch.setattr(training.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(training, "_asked", lambda *_: {"triton": result, "four_bits": result})
    found = list(training.accelerator())
    assert {each.status for each in found} == {"failure" if problem else "ok"}
    assert {each.remedy for each in found} == {"install gcc" if problem else ""}


def test_a_plan_that_does_not_fit_is_said_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"device": "cuda", "peak_bytes": 9 << 30, "limit_bytes": 8 << 30, "fits": False, "disk_bytes": 1 << 60}
    monkeypatch.setattr(training, "_trainer_python", lambda: "python")
    monkeypatch.setattr(training, "_asked", lambda *_: made)
    memory, disk = training.plan(tmp_path / "wish.toml", tmp_path)
    assert (memory.status, "--fit 8192MiB" in memory.remedy) == ("warning", True)
    assert (disk.status, "9.00 GiB of GPU memory at the peak" in memory.seen) == ("failure", True)
    made["proposal"] = {"peak_bytes": 7 << 30}  # of a config that lets the trainer choose
    memory, _ = training.plan(tmp_path / "wish.toml", tmp_path)
    assert (memory.status, "7.00 GiB of GPU memory for the plan that fits" in memory.seen) == ("ok", True)


def test_no_doctor_is_no_option_of_the_program() -> None:
    said = subprocess.run(
        [sys.executable, "tools/runtime.py", "train", "--no-doctor", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"RUNTIME": "docker", "PATH": "/nowhere"},
    )
    assert "RUNTIME=docker, and no Docker engine" in said.stderr  # refused for that, not for the option
