#!/usr/bin/env python3
"""The whole job on one machine: set up, train, export, verify, serve, evaluate, report. No GPU, no Docker, no network
beyond the package index.

usage: tools/demo.py [--store models] [--config configs/demo.toml] [--questions FILE]

The last line is for scripts: `demo: base 2.5% tuned 91.7% multi-hop 70.0% seconds 412 report PATH`.
A second call takes up what is there: the environments, the run. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 120


class StepFailed(Exception):
    """A step ended with an error that it has already explained on stderr."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"the step '{step}' failed (exit code {code})")
        self.code = code


def command(environment: str, *arguments: str) -> list[str]:
    """A program of the kit in its own environment."""
    return [str(ROOT / ".venv" / environment / "bin" / "python"), "-m", *arguments]


def run(title: str, argv: list[str]) -> str:
    """Run a step with its progress on this terminal; returns what it wrote to stdout."""
    print(f"\n== {title}", file=sys.stderr, flush=True)
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StepFailed(title, done.returncode)
    return done.stdout


@contextmanager
def served(run_id: str, store: Path) -> Iterator[str]:
    """The run and its base behind one endpoint; yields its address and stops the server afterwards."""
    port = _free_port()
    print(f"\n== serve {run_id} and its base model on port {port}", file=sys.stderr, flush=True)
    log = store / "work" / "demo-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = command("server", "server", "serve", run_id, "--store", str(store), "--port", str(port))
    with log.open("w") as output, subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=output) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            run(
                "wait until it generates",
                command("server", "server", "wait", "--url", url, "--timeout-s", str(READY_TIMEOUT_S)),
            )
            yield url
        except StepFailed:
            print(log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo(store: Path, config: Path, questions: Path) -> str:
    """Returns the closing line."""
    started = time.monotonic()
    run("environments", [sys.executable, str(ROOT / "tools" / "envs.py")])
    training = command("trainer", "trainer", "train", "--config", str(config), "--store", str(store), "--json")
    run_id = json.loads(run("train, export, verify, publish", training))["run"]
    with served(run_id, store) as url:
        evaluation = command("clients", "clients", "eval", "--url", f"{url}/v1", "--store", str(store), "--json")
        summary = json.loads(run("evaluate base against tuned", [*evaluation, "--questions", str(questions)]))
    _say_how_to_go_on(run_id, summary)
    return _closing_line(summary, time.monotonic() - started)


def _say_how_to_go_on(run_id: str, summary: dict[str, Any]) -> None:
    print(f"""
== done: {run_id}
report        {summary["report"]}
serve it      make serve RUN={run_id}
chat with it  make chat                      (in a second terminal)
your data     make train DATA=my.jsonl       (one {{"question": ..., "answer": ...}} a line)
all runs      make runs""")


def _closing_line(summary: dict[str, Any], seconds: float) -> str:
    base, tuned, hop = (100 * part["strict"] for part in _parts(summary))
    report = summary["report"]
    return f"demo: base {base:.1f}% tuned {tuned:.1f}% multi-hop {hop:.1f}% seconds {seconds:.0f} report {report}"


def _parts(summary: dict[str, Any]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    return summary["base"], summary["tuned"], summary["by_category"]["multi-hop"]["tuned"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--questions", type=Path, default=Path("data/handbook-en/questions.jsonl"))
    arguments = parser.parse_args()
    os.chdir(ROOT)
    try:
        print(demo(arguments.store, arguments.config, arguments.questions))
    except StepFailed as failure:
        print(f"error: {failure}; what went wrong stands above. The same command goes on from here.", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
