"""What vLLM finds where it is started, from a package in its place that tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.server.conftest import ROOT

API_SERVER = """
import json, multiprocessing, os, sys
from vllm import envs

def found(_):
    return {"key": envs.VLLM_API_KEY, "variable": os.environ.get("VLLM_API_KEY"), "arguments": sys.argv[1:]}

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # as vLLM starts its engine
        print(json.dumps({"server": found(0), "engine": pool.map(found, [0])[0], "path": sys.path}))
"""
ENVS = """
import os

def __getattr__(name):
    if name == "VLLM_API_KEY":
        return os.environ.get(name)
    raise AttributeError(name)
"""


def test_only_the_server_process_has_the_key(tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    (package / "entrypoints" / "openai").mkdir(parents=True)
    for folder in (package, package / "entrypoints", package / "entrypoints" / "openai"):
        (folder / "__init__.py").touch()
    (package / "envs.py").write_text(ENVS)
    (package / "entrypoints" / "openai" / "api_server.py").write_text(API_SERVER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "VLLM_API_KEY": "secret"}
    argv = [sys.executable, str(ROOT / "server" / "vllm_start.py"), "--port", "1"]
    told = json.loads(subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout)
    assert told["server"] == {"key": "secret", "variable": None, "arguments": ["--port", "1"]}
    assert told["engine"] == {"key": None, "variable": None, "arguments": ["--port", "1"]}
    assert str(ROOT / "server") not in told["path"]
