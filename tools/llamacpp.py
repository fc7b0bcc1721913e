#!/usr/bin/env python3
"""Compiles llama.cpp for this machine below .venv/llamacpp: server, quantizer, importance matrix, converter.

usage: tools/llamacpp.py [--jobs N] [--cpu]

The packages' builds use what nearly every processor has; this one uses what this processor has, and an NVIDIA GPU with
its CUDA compiler (--cpu leaves that out). Trainer and server then take all of llama.cpp from there. The source is that
of the package llama-cpp-python, by its hash, from wherever pip is configured to find it. What was compiled before
from the same source stays. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv" / "llamacpp"
SOURCE = ROOT / "requirements" / "hashed" / "llamacpp-source.txt"
PROGRAMS = ("llama-server", "llama-quantize", "llama-imatrix", "llama-perplexity")  # the last for a benchmark
BESIDE = ("conversion", "gguf-py", "convert_hf_to_gguf.py", "LICENSE")
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=ON",
    *(f"-DLLAMA_{part}=OFF" for part in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "BUILD_UI", "USE_PREBUILT_UI")),
    "-DLLAMA_OPENSSL=OFF",
    f"-DLLAMA_BUILD_COMMIT={'-'.join(re.findall(r'^(llama-cpp-python)==([0-9.]+)', SOURCE.read_text(), re.M)[0])}",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",  # the libraries lie beside the programs
]
CUDA_OPTIONS = ["-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF", "-DCMAKE_CUDA_ARCHITECTURES=native"]


class BuildError(Exception):
    """llama.cpp could not be made; the text says why and what to do."""


def options(*, cpu: bool) -> list[str]:
    """For cmake. Raises BuildError where a tool is missing."""
    compilers = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and shutil.which(name)]
    if not shutil.which("cmake") or not compilers:
        raise BuildError("cmake and a C++ compiler are needed: on Debian or Ubuntu, apt-get install cmake g++")
    if cpu or not shutil.which("nvidia-smi"):
        return OPTIONS
    if not shutil.which("nvcc"):
        raise BuildError(
            "this machine has an NVIDIA GPU and no CUDA compiler (nvcc): install the CUDA toolkit that its driver "
            "takes and put its bin on the PATH, or compile for the processor alone: make llamacpp ARGS=--cpu"
        )
    return [*OPTIONS, *CUDA_OPTIONS]


def unpack(work: Path) -> Path:
    """The source tree, fetched by pip and checked against its hash."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    run([*argv, "--require-hashes", "-r", str(SOURCE), "--dest", str(work)], work / "pip.log")
    shutil.unpack_archive(next(work.glob("llama_cpp_python-*.tar.gz")), work)
    return next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))


def compile_programs(tree: Path, build: Path, chosen: list[str], jobs: int) -> None:
    """With the share that is done and the time that is left."""
    run(["cmake", "-S", str(tree), "-B", str(build), *chosen], build.parent / "configure.log")
    argv = ["cmake", "--build", str(build), "--parallel", str(jobs), "--target", *PROGRAMS]
    run(argv, build.parent / "compile.log", shows_progress=True)


def install(tree: Path, build: Path, target: Path) -> None:
    """Programs, libraries and the converter in one folder."""
    target.mkdir(parents=True)
    for path in sorted((build / "bin").iterdir()):
        if path.name in PROGRAMS or ".so" in path.name or path.suffix == ".dylib":
            shutil.copy2(path, target, follow_symlinks=False)
    for name in BESIDE:
        path = tree / name
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target / name)


def run(argv: list[str], log: Path, *, shows_progress: bool = False) -> None:
    """Raises BuildError with the end of what the program said."""
    began, shown, said = time.monotonic(), 0, []
    with (
        log.open("w") as copy,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            copy.write(line)
            said = [*said[-30:], line]
            found = re.match(r"\[ *(\d+)%\]", line)
            percent = int(found[1]) if found else 0
            if shows_progress and percent >= shown + (1 if sys.stderr.isatty() else 10):
                shown = percent
                _show(percent, time.monotonic() - began)
    if child.returncode:
        raise BuildError(f"{Path(argv[0]).name} failed (exit code {child.returncode}):\n{''.join(said)}")


def _show(percent: int, seconds: float) -> None:
    left = f", about {seconds / percent * (100 - percent) / 60:.0f} min left" if percent >= 5 else ""
    start, end = ("\r", "" if percent < 100 else "\n") if sys.stderr.isatty() else ("", "\n")
    print(f"{start}compiling: {percent:3}%{left}   ", end=end, file=sys.stderr, flush=True)


def make(*, cpu: bool, jobs: int) -> str:
    """A line for the user."""
    chosen = options(cpu=cpu)
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join([*chosen, *PROGRAMS]).encode()).hexdigest()
    if (FOLDER / "stamp").exists() and (FOLDER / "stamp").read_text() == digest:
        return "llama.cpp: ready"
    began, new = time.monotonic(), FOLDER.with_name("llamacpp.new")
    with tempfile.TemporaryDirectory(prefix="tuneship-llamacpp-") as folder:
        tree = unpack(Path(folder))
        compile_programs(tree, Path(folder) / "build", chosen, jobs)
        shutil.rmtree(new, ignore_errors=True)
        install(tree, Path(folder) / "build", new)
    said = subprocess.run([new / "llama-server", "--version"], capture_output=True, text=True, check=False)
    if said.returncode:
        raise BuildError(f"the compiled llama-server does not start:\n{said.stderr[-1000:]}")
    (new / "stamp").write_text(digest)
    shutil.rmtree(FOLDER, ignore_errors=True)
    new.rename(FOLDER)
    kind = "this GPU and processor" if "-DGGML_CUDA=ON" in chosen else "this processor"
    return f"llama.cpp: compiled for {kind} ({time.monotonic() - began:.0f} s); trainer and server use it from now on"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once (default: processors)")
    parser.add_argument("--cpu", action="store_true", help="without the GPU")
    wish = parser.parse_args()
    try:
        print(make(cpu=wish.cpu, jobs=wish.jobs), file=sys.stderr)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
