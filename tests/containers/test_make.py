"""The make targets in containers: the same commands and options as natively."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from compose import ROOT, Project, ask


def test_make_trains_serves_and_evaluates_in_containers(
    project: Callable[..., Project], shared_store: Path, tmp_path: Path
) -> None:
    kit = project("make")
    port = kit.environment.pop("TUNESHIP_PORT")
    data = Path(kit.environment.pop("TUNESHIP_DATA"))
    questions = tmp_path / "asked.jsonl"
    questions.write_text((data / "questions.jsonl").read_text())
    questions.chmod(0o644)
    environment = {**os.environ, **kit.environment, "COMPOSE_PROJECT_NAME": kit.name}

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["make", *words, f"STORE={shared_store}", f"PORT={port}"]
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done

    trained = make("train", "CONFIG=configs/tiny.toml", f"DATA={data / 'train.jsonl'}")
    assert "runtime: docker, because a Docker engine answers; accelerator: cpu" in trained.stderr
    assert "already trained" in trained.stdout
    assert "no container serves" in _refused("eval", environment)
    assert f"ready: http://127.0.0.1:{port}/v1" in make("serve").stderr
    assert ask(f"http://127.0.0.1:{port}/ready")[0] == 200
    said = make("eval", f"QUESTIONS={questions}")
    assert "report: models/reports/" in said.stdout and list(shared_store.glob("reports/*/*/report.html"))
    assert "tokens" in make("bench", "ARGS=--streams 1 --requests 2 --prompt-tokens 16 --output-tokens 4").stdout
    assert "report.html" in make("report").stdout
    assert "server-llamacpp" in make("ps").stdout
    make("down")
    assert not kit.exists("server-llamacpp")


def _refused(target: str, environment: dict[str, str]) -> str:
    """Without a server's container the clients run natively, and say so before they find no server."""
    argv = ["make", target, "URL=http://127.0.0.1:1/v1"]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stderr
