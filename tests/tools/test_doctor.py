"""The doctor on this very machine, and on machines that something is wrong with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import doctor  # noqa: E402  a script, not a package

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
    assert (doctor.gpu().status, bool(doctor.gpu().remedy)) == (status, True)


def test_a_fit_driver_without_the_container_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "nvidia-smi", PROGRAMS["new driver"], monkeypatch)
    stand_in(tmp_path, "docker", 'echo "26.1.5 {\\"runc\\":{}}"', monkeypatch)
    assert doctor.gpu().status == "ok"
    assert "nvidia-container-toolkit" in doctor.docker().remedy


def test_a_port_in_use_is_a_warning() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        assert (doctor.port(number).status, doctor.port(number).remedy.split(",")[0]) == (
            "warning",
            f"make serve PORT={number + 1}",
        )


def test_a_store_that_cannot_be_written_and_one_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_folder = Path("/proc/self")  # exists, and takes no files, for root neither
    assert [finding.status for finding in doctor.store(no_folder)][-1] == "failure"
    monkeypatch.setattr(doctor, "LEAST_DISK_BYTES", 1 << 62)
    assert next(doctor.store(tmp_path)).status == "failure"


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "click-8.0.0.dist-info").mkdir(parents=True)
    (packages / "Some_Thing-1.0+cpu.dist-info").mkdir()
    lock = tmp_path / "x.lock"
    lock.write_text("click==8.5.1\nsome-thing==1.0\nrich==15.0.0\n")
    assert doctor._other_versions(tmp_path, lock) == [
        "click 8.0.0 instead of 8.5.1",
        "rich is missing instead of 15.0.0",
    ]
