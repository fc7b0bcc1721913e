#!/usr/bin/env python3
"""Packs everything that a host without a network needs into one folder, and restores it there.

usage: tools/bundle.py pack FOLDER [--store models] [--run current] [--engine llamacpp|vllm] [--accelerator cpu|cuda]
       tools/bundle.py load           (in that folder, on the other host)

The folder holds the images, the run with its base model, configs, data, the compose files and SHA256SUMS of all of it.
The images are those of TUNESHIP_TAG and have to be built before. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modelstore import Store, UserError, exit_cleanly  # noqa: E402

FILES = ("compose.yaml", "compose.gpu.yaml", ".env.example", "Makefile", "README.md", "README.zh-CN.md")
FOLDERS = ("configs", "data", "deploy", "docker", "docs", "modelstore", "tools")
SUMS = "SHA256SUMS"
OWNER = 10001


def pack(folder: Path, store: Store, ref: str, engine: str, accelerator: str) -> None:
    """Raises UserError."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty. Name a new folder.")
    tag = os.environ.get("TUNESHIP_TAG", "local")
    run = store.run(ref)
    store.check(run)
    wanted = images(tag, engine, accelerator)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy_store(store, run.id, folder / "models")
    (folder / ".env").write_text(f"TUNESHIP_TAG={tag}\nTUNESHIP_STORE=./models\nHF_HUB_OFFLINE=1\n", encoding="utf-8")
    say(f"saving {', '.join(wanted)}")
    docker("save", "--output", str(folder / "images.tar"), *wanted)
    say("hashing")
    (folder / SUMS).write_text(sums(folder), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {size / 1e9:.1f} GB. On the other host, in that folder: python3 tools/bundle.py load")


def images(tag: str, engine: str, accelerator: str) -> list[str]:
    """The names of trainer, server and clients. Raises UserError for one that is not built."""
    server = f"tuneship/server-{engine}:{tag}-{'cuda' if engine == 'vllm' else accelerator}"
    names = [f"tuneship/trainer:{tag}-{accelerator}", server, f"tuneship/clients:{tag}-cpu"]
    for name in names:
        if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode:
            raise UserError(f"There is no image {name}. `docker compose --profile '*' build` makes the images.")
    return names


def copy_store(store: Store, run_id: str, target: Path) -> None:
    """The run, its base model and the downloads that training again would need; `current` names the run."""
    base_id = str(store.run(run_id).manifest.base["id"])
    for part in (f"runs/{run_id}", f"bases/{base_id}", "cache/huggingface"):
        if (store.path / part).is_dir():
            shutil.copytree(store.path / part, target / part, symlinks=True)
    Store(target).create()
    Store(target).promote(run_id)


def sums(folder: Path) -> str:
    """In the form of sha256sum."""
    names = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p != folder / SUMS)
    return "".join(f"{digest(path)}  {path.relative_to(folder)}\n" for path in names)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(folder: Path) -> None:
    """Check every file, give the images to the engine, the store to the user that containers run as."""
    if not (folder / SUMS).exists():
        raise UserError(f"{folder} is no bundle: there is no {SUMS}. `tools/bundle.py pack FOLDER` makes one.")
    expected = dict(reversed(line.split("  ", 1)) for line in (folder / SUMS).read_text().splitlines())
    broken = [name for name, hashed in expected.items() if not intact(folder / name, hashed)]
    if broken:
        raise UserError(
            f"{len(broken)} file(s) are damaged or missing: {', '.join(broken[:5])}. Copy the bundle again."
        )
    say(f"{len(expected)} files are as packed")
    docker("load", "--quiet", "--input", str(folder / "images.tar"))
    uid, gid = (OWNER, OWNER) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    if os.geteuid() == 0:
        for path in [folder / "models", *(folder / "models").rglob("*")]:
            os.chown(path, uid, gid, follow_symlinks=False)
    else:
        with (folder / ".env").open("a", encoding="utf-8") as file:
            file.write(f"TUNESHIP_UID={uid}\nTUNESHIP_GID={gid}\n")
    say("loaded. Serve: docker compose --profile serve-llamacpp up --detach --wait --no-build")


def intact(path: Path, hashed: str) -> bool:
    return path.is_file() and (path.name == ".env" or digest(path) == hashed)  # loading twice appends to .env


def docker(*arguments: str) -> None:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"docker {arguments[0]} failed: {done.stderr.strip()[-500:]}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="pack|load")
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--store", type=Path, default=Path("models"))
    packing.add_argument("--run", default="current")
    packing.add_argument("--engine", choices=("llamacpp", "vllm"), default="llamacpp")
    packing.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    commands.add_parser("load")
    arguments = parser.parse_args()
    if arguments.command == "load":
        load(ROOT)
    else:
        pack(arguments.folder, Store(arguments.store), arguments.run, arguments.engine, arguments.accelerator)


if __name__ == "__main__":
    exit_cleanly(main)
