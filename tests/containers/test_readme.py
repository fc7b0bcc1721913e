"""The README's section on containers, followed word for word."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from compose import ROOT, Project, ask


def test_its_commands_run_as_they_stand(project: Callable[..., Project], shared_store: Path) -> None:
    """README.zh-CN.md has the same commands: tests/tools compares them."""
    kit = project("readme", TUNESHIP_STORE=str(shared_store))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (commands,) = (block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "docker compose" in block)
    up, evaluate, ps, down = commands.strip().splitlines()
    environment = {**os.environ, **kit.environment, "COMPOSE_PROJECT_NAME": kit.name}

    def typed(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    typed(up)
    assert ask(f"{kit.url}/ready")[0] == 200
    assert "report:" in typed(evaluate)
    assert "(healthy)" in typed(ps)
    typed(down)
    assert not kit.exists("server-llamacpp")
