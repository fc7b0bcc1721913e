#!/usr/bin/env python3
"""Looks whether this machine can train, serve and deploy, before any work is lost: one line a check.

usage: tools/doctor.py [--config configs/demo.toml] [--store models] [--port 8000] [--json]

Exit code: 0 when nothing failed (warnings are allowed), 1 otherwise. Each failure ends with what mends it. Standard
library only: it runs before anything is installed. `make train`, `make serve` and `make deploy` run the quick part of
it first, unless ARGS has --no-doctor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import doctor_machine as machine
import doctor_training as training
from doctor_machine import FAILURE, OK, WARNING, Finding

STORE = Path("models")
Check = Callable[[], Finding | Iterator[Finding]]
# what a command cannot do without; all else is a warning before it, as the run may be a legitimate one all the same
BLOCKING = {
    "train": ("python", "store", "clock"),
    "serve": ("python",),
    "deploy": ("python",),
}


def examine(store: Path, port: int, config: Path) -> list[Finding]:
    """Every check."""
    return _seen(
        [
            machine.python,
            machine.environments,
            machine.processors,
            machine.memory,
            lambda: machine.store(store),
            machine.gpu,
            machine.llamacpp,
            machine.docker,
            lambda: machine.port(port),
            machine.clock,
            lambda: training.base(config, store),
            lambda: training.plan(config, store),
            training.accelerator,
        ]
    )


def quick(command: str, *, containers: bool = False, cuda: bool = False, store: Path = STORE) -> list[Finding]:
    """What is wrong for this command, in well under a second; failures are those that stop it.

    `containers` and `cuda` say how the command will run. The port is the server's own to check, memory and disk the
    trainer's, which knows the config.
    """
    checks: list[Check] = [machine.python, machine.clock]
    if containers:
        checks.append(machine.compose)
        checks += [machine.gpu] if cuda else []
    elif command == "train":
        checks += [machine.gpu, lambda: machine.store(store)]
    found = [finding for finding in _seen(checks) if finding.status != OK]
    blocking = (*BLOCKING[command], *(("docker",) if containers else ()), *(("gpu",) if containers and cuda else ()))
    return [each if each.name in blocking else replace(each, status=WARNING) for each in found]


def _seen(checks: list[Check]) -> list[Finding]:
    found: list[Finding] = []
    for check in checks:
        seen = check()
        found += [seen] if isinstance(seen, Finding) else seen
    return found


def as_text(finding: Finding) -> str:
    """A line, and what mends it in another."""
    line = f"{finding.status:8} {finding.name:20} {finding.seen}"
    return line + (f"\n{'':9}→ {finding.remedy}" if finding.remedy else "")


def failed(found: list[Finding]) -> bool:
    return any(finding.status == FAILURE for finding in found)


def stops(command: str, *, containers: bool = False, cuda: bool = False, store: Path = STORE) -> bool:
    """Say what the quick checks found; True where the command had better not start."""
    found = quick(command, containers=containers, cuda=cuda, store=store)
    for finding in found:
        print(as_text(finding), file=sys.stderr)
    if failed(found):
        print(
            f"`make {command}` was not started; `make doctor` says more, ARGS=--no-doctor starts it.", file=sys.stderr
        )
    return failed(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    wish = parser.parse_args()
    found = examine(wish.store, wish.port, wish.config)
    print(json.dumps([asdict(each) for each in found]) if wish.json else "\n".join(as_text(each) for each in found))
    return 1 if failed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
