#!/usr/bin/env python3
"""Formatting, lint and strict types, each package in the environment that it runs in. Exits non-zero at any finding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TYPED = {"trainer": ("modelstore", "trainer"), "server": ("server",), "clients": ("clients",)}


def commands() -> list[list[str]]:
    """Every check as an argument list."""
    ruff = str(ROOT / ".venv/clients/bin/ruff")
    lint = [[ruff, "format", "--check", "--quiet", "."], [ruff, "check", "--quiet", "."]]
    types = [
        [str(ROOT / ".venv" / name / "bin" / "mypy"), *(part for package in packages for part in ("-p", package))]
        for name, packages in TYPED.items()
    ]
    return lint + types + container_lint()


def container_lint() -> list[list[str]]:
    """Dockerfiles, shell scripts, compose files, manifests. What needs an engine is checked in tests/containers."""
    tools = ROOT / ".venv/clients/bin"
    manifests = [name for name in files("deploy/kubernetes/*.yaml") if not name.endswith("kustomization.yaml")]
    scripts = [*files("docker/install/*"), *files("tests/containers/*.sh"), ".ci/run"]
    return [
        [str(tools / "hadolint"), *files("docker/*.Dockerfile")],
        [str(tools / "shellcheck"), *scripts],
        [str(tools / "yamllint"), "--strict", "."],
        [str(tools / "compose-lint"), "--quiet", "--no-env", "--fail-on", "low", "--skip-suppressed", "compose.yaml"],
        [str(tools / "kubernetes-validate"), "--strict", "--quiet", *manifests],
    ]


def files(pattern: str) -> list[str]:
    """Paths below the root, sorted."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def main() -> int:
    failed = 0
    for argv in commands():
        done = subprocess.run(argv, cwd=ROOT, check=False)
        shown = " ".join([Path(argv[0]).name, *argv[1:]])
        print(f"{'ok' if done.returncode == 0 else 'FAILED':6} {shown}", flush=True)
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
