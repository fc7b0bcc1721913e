"""The README's promise: one command from nothing to a report, and the numbers that it closes with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = str(ROOT / ".venv" / "server" / "bin" / "python")
CLOSING = re.compile(
    r"demo: base (?P<base>[\d.]+)% tuned (?P<tuned>[\d.]+)% multi-hop (?P<hop>[\d.]+)% "
    r"seconds (?P<seconds>\d+) report (?P<report>\S+)$"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    store = tmp_path_factory.mktemp("demo") / "models"
    argv = [sys.executable, "tools/demo.py", "--store", str(store)]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    found = CLOSING.search(done.stdout.strip())
    assert found, done.stdout
    print(found[0])
    return store, found.groupdict()


def test_the_tuned_model_answers_what_the_base_could_not(demo: tuple[Path, dict[str, str]]) -> None:
    figures = demo[1]
    assert float(figures["base"]) < 10
    assert float(figures["tuned"]) >= 80
    assert float(figures["hop"]) >= 60


def test_the_report_says_so_with_an_interval(demo: tuple[Path, dict[str, str]]) -> None:
    report = ROOT / demo[1]["report"]
    page = report.read_text(encoding="utf-8")
    assert "The tuned model is better than the base model by" in page and "95% interval" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page), "the page loads something from the network"
    tree = json.loads((report.parent / "report.json").read_text(encoding="utf-8"))
    assert tree["run"]["verification"] and tree["summary"]["tuned"]["failed"] == 0


@pytest.fixture(scope="module")
def endpoint(demo: tuple[Path, dict[str, str]]) -> Iterator[str]:
    log = (demo[0] / "serve.log").open("w")
    argv = [SERVER, "-m", "server", "serve", "--store", str(demo[0]), "--port", "8000"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log) as server:
        wait = [SERVER, "-m", "server", "wait", "--url", "http://127.0.0.1:8000", "--timeout-s", "60"]
        subprocess.run(wait, cwd=ROOT, check=True)
        yield "http://127.0.0.1:8000/v1"
        server.terminate()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_example_runs_as_it_stands(endpoint: str, name: str, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert code and endpoint in code[1]
    (tmp_path / "example.py").write_text(code[1], encoding="utf-8")
    said = subprocess.check_output([sys.executable, str(tmp_path / "example.py")], text=True)
    assert "75 days" in said


def test_bench_and_runs_work_on_the_live_server(endpoint: str, demo: tuple[Path, dict[str, str]]) -> None:
    argv = [sys.executable, "-m", "clients", "bench", "--url", endpoint, "--streams", "1,4", "--requests", "4"]
    options = ["--output-tokens", "16", "--store", str(demo[0]), "--json"]
    rows = json.loads(subprocess.check_output([*argv, *options], cwd=ROOT, text=True))
    assert [(row["streams"], row["completed"], row["failed"]) for row in rows] == [(1, 4, 0), (4, 4, 0)]
    assert all(row["output_tokens_per_s"] > 0 for row in rows)
    listed = [sys.executable, "-m", "modelstore", "--store", str(demo[0]), "runs", "--json"]
    (run,) = json.loads(subprocess.check_output(listed, cwd=ROOT, text=True))
    assert run["channel"] == "current" and run["accuracy"] >= 0.8


@pytest.mark.parametrize(
    ("python", "program"),
    [
        *(
            (f".venv/{env}/bin/python", f"{env} {command}".strip())
            for env, command in (("trainer", ""), ("trainer", "train"))
        ),
        *((".venv/server/bin/python", f"server {command}".strip()) for command in ("", "serve", "wait")),
        *(
            (".venv/clients/bin/python", f"clients {command}".strip())
            for command in ("", "eval", "bench", "report", "rate", "judge", "chat")
        ),
    ],
)
def test_help_answers_at_once(python: str, program: str) -> None:
    argv = [str(ROOT / python), "-m", *program.split(), "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, env=environment)  # the first call compiles
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, env=environment)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3, seconds
