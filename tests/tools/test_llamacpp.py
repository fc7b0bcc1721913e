"""Compiling llama.cpp: what is missing is said before anything is fetched, and nothing half-made is ever used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import llamacpp  # noqa: E402  a script, not a package


def programs(folder: Path, *names: str) -> str:
    """A PATH with nothing else on it."""
    for name in names:
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "cmake and a C++ compiler are needed"),
        (("cmake",), "cmake and a C++ compiler are needed"),
        (("cmake", "g++", "nvidia-smi"), "no CUDA compiler"),
    ],
)
def test_a_missing_tool_is_named(tmp_path: Path, there: tuple[str, ...], said: str) -> None:
    environment = {"PATH": programs(tmp_path, *there)}
    argv = [sys.executable, "tools/llamacpp.py"]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_the_gpu_is_used_where_its_compiler_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, "cmake", "c++", "nvidia-smi", "nvcc"))
    assert "-DGGML_CUDA=ON" in llamacpp.options(cpu=False)
    assert "-DGGML_CUDA=ON" not in llamacpp.options(cpu=True)


@pytest.mark.parametrize("fails_at", ["compile", "start"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    folder = tmp_path / "venv" / "llamacpp"
    folder.mkdir(parents=True)
    (folder / "stamp").write_text("of another source")
    monkeypatch.setattr(llamacpp, "FOLDER", folder)
    monkeypatch.setattr(llamacpp, "options", lambda **_: [])
    monkeypatch.setattr(llamacpp, "unpack", _tree)

    def compiled(tree: Path, build: Path, chosen: list[str], jobs: int) -> None:
        if fails_at == "compile":
            llamacpp.run([sys.executable, "-c", "print('[ 50%] Building'); raise SystemExit(2)"], tree / "log")
        (build / "bin").mkdir(parents=True)
        programs(build / "bin", *llamacpp.PROGRAMS)
        (build / "bin" / "llama-server").write_text("#!/bin/sh\nexit 1\n")

    monkeypatch.setattr(llamacpp, "compile_programs", compiled)
    with pytest.raises(llamacpp.BuildError, match="exit code 2" if fails_at == "compile" else "does not start"):
        llamacpp.make(cpu=True, jobs=1)
    assert (folder / "stamp").read_text() == "of another source"


def _tree(work: Path) -> Path:
    for name in llamacpp.BESIDE:
        (work / name).mkdir(parents=True)
    return work


@pytest.mark.skipif(not os.environ.get("TUNESHIP_TEST_LONG"), reason="compiles for minutes: TUNESHIP_TEST_LONG=1")
def test_it_compiles_and_is_then_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shutil.which("cmake")
    monkeypatch.setattr(llamacpp, "FOLDER", tmp_path / "llamacpp")
    assert "compiled for this processor" in llamacpp.make(cpu=True, jobs=os.cpu_count() or 1)
    assert llamacpp.make(cpu=True, jobs=1) == "llama.cpp: ready"
    said = subprocess.run(
        [tmp_path / "llamacpp" / "llama-server", "--version"], capture_output=True, text=True, check=True
    )
    assert "llama-cpp-python" in said.stdout + said.stderr
