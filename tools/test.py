#!/usr/bin/env python3
"""Runs every test suite in the environment that it belongs to, then prints coverage and one closing line with counts.

usage: tools/test.py [SUITE …]        suites: modelstore trainer server clients data tools e2e containers
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# suite -> environment; architecture and tooling tests need nothing but pytest
SUITES = {
    "modelstore": "clients",
    "tools": "clients",
    "data": "clients",
    "trainer": "trainer",
    "server": "server",
    "clients": "clients",
    "e2e": "clients",
    "containers": "clients",
}
OUTCOMES = ("passed", "failed", "skipped", "error")


def run_suite(suite: str) -> dict[str, int]:
    """Counts by outcome; a suite that cannot even start counts as one error."""
    python = ROOT / ".venv" / SUITES[suite] / "bin" / "python"
    print(f"\n== tests/{suite}", flush=True)
    argv = [str(python), "-m", "coverage", "run", "-m", "pytest", f"tests/{suite}", "--timeout=1500", "--durations=3"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if re.search(r"\d+ (passed|failed|skipped|error)", line) else last
    counts = {outcome: int(found[1]) if (found := re.search(rf"(\d+) {outcome}", last)) else 0 for outcome in OUTCOMES}
    if process.wait() and not counts["failed"]:
        counts["error"] = counts["error"] or 1
    return counts


def coverage() -> None:
    """Lines covered, all suites together."""
    tool = [str(ROOT / ".venv/clients/bin/python"), "-m", "coverage"]
    subprocess.run([*tool, "combine", "--quiet"], cwd=ROOT, check=False)
    subprocess.run([*tool, "report", "--skip-covered", "--ignore-errors"], cwd=ROOT, check=False)


def main() -> int:
    suites = sys.argv[1:] or list(SUITES)
    if unknown := set(suites) - set(SUITES):
        print(f"error: no suite {sorted(unknown)}; there are {', '.join(SUITES)}", file=sys.stderr)
        return 2
    total = dict.fromkeys(OUTCOMES, 0)
    for suite in suites:
        total = {outcome: total[outcome] + count for outcome, count in run_suite(suite).items()}
    coverage()
    failed = total["failed"] + total["error"]
    print(f"\n{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
