"""A bundle for a host without a network: packed, loaded into an engine without the images, used with no way out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from compose import ALL, ROOT, Project, docker

IMAGES = [f"tuneship/{name}:test-cpu" for name in ("trainer", "server-llamacpp", "clients")]


@pytest.fixture(scope="module")
def bundle(images: None, shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tuneship"
    argv = [sys.executable, str(ROOT / "tools/bundle.py"), "pack", str(folder), "--store", str(shared_store)]
    subprocess.run(argv, check=True, env={**os.environ, "TUNESHIP_TAG": "test"})
    return folder


def loaded(folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(folder / "tools/bundle.py"), "load"]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_damaged_bundle_is_refused(bundle: Path) -> None:
    victim = bundle / "configs" / "demo.toml"
    original = victim.read_bytes()
    victim.write_bytes(original + b"#")
    done = loaded(bundle)
    victim.write_bytes(original)
    assert done.returncode == 2 and "configs/demo.toml" in done.stderr and "Traceback" not in done.stderr


def test_it_trains_serves_and_evaluates_without_a_network(
    bundle: Path, project: Callable[..., Project], running: Project
) -> None:
    running.must("--profile", "*", "down")  # its volume stays
    docker("rmi", "--force", *IMAGES)
    done = loaded(bundle)
    assert done.returncode == 0, done.stderr
    kit = project("bundle", TUNESHIP_STORE=str(bundle / "models"), TUNESHIP_TRAIN_ARGS="--again", HF_HUB_OFFLINE="1")
    kit.files = [str(bundle / "compose.yaml"), str(ROOT / "tests/containers/offline.yaml")]
    kit.must(*ALL, "up", "--detach", "--wait", "--no-build", timeout_s=400)
    assert "published" in kit.log("trainer")
    said = kit.must("--profile", "eval", "run", "--rm", "-T", "--no-deps", "eval", timeout_s=120)
    assert "report:" in said
