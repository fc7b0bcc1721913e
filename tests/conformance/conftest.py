"""The same endpoint on the engine that TUNESHIP_TEST_ENGINE names: llamacpp unless it says vllm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from modelstore import Store
from tests.server.conftest import ROOT, RUN_ID, Served, build_store, serving

SECOND_ID = "20261124-0800-smollm2-handbook-b1c2"
# generated requests were only tried on llama.cpp so far; the checks before the engine are the same
GENERATED = ["test_fuzz.py", "test_description.py"]
collect_ignore = GENERATED if os.environ.get("TUNESHIP_TEST_ENGINE") == "vllm" else ["test_vllm_engine.py"]
ENGINE = os.environ.get("TUNESHIP_TEST_ENGINE", "llamacpp")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the engine can serve: a run with GGUF files, or two with merged weights and an adapter."""
    folder = tmp_path_factory.mktemp("store") / "models"
    if ENGINE == "llamacpp":
        return build_store(folder)
    script = ROOT / "tests/conformance/make_store.py"
    argv = [str(ROOT / ".venv/trainer/bin/python"), str(script), str(folder), RUN_ID, SECOND_ID]
    subprocess.run(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return Store(folder)


@pytest.fixture(scope="module")
def served(store: Store) -> Iterator[Served]:
    """One server for all tests of the file."""
    with serving(store, "--engine", ENGINE, "--threads", "2", timeout_s=300) as running:
        yield running
