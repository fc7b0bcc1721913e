#!/usr/bin/env python3
"""Runs every test suite in the environment that it belongs to, then prints coverage and one closing line with counts.

usage: tools/test.py [SUITE …]
suites: modelstore trainer faults server conformance clients data tools e2e containers vllm

Suites that hold nothing to a speed run two at once, where there is memory for it. vllm runs when it is named or its
environment is there (tools/envs.py vllm, 2 GB).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# suite -> environment; architecture and tooling tests need nothing but pytest
SUITES = {
    "modelstore": "clients",
    "tools": "clients",
    "data": "clients",
    "trainer": "trainer",
    "faults": "trainer",
    "server": "server",
    "conformance": "server",
    "clients": "clients",
    "e2e": "clients",
    "containers": "clients",
    "vllm": "server",
}
# a suite whose name is not its folder's, and its settings
FOLDERS = {"vllm": "conformance"}
SETTINGS = {"vllm": {"TUNESHIP_TEST_ENGINE": "vllm"}}
OUTCOMES = ("passed", "failed", "skipped", "error")
# Their limits find what hangs, not what is slow, and much of their time programs start on one processor or wait: they
# run two at once, the longest first. The others have the machine to themselves.
PAIRED = ("trainer", "containers", "faults", "data", "tools", "modelstore")
LEAST_GB_TO_PAIR = 12  # the first two were seen to take 8 together


def run_suite(suite: str, margin: str = "") -> dict[str, int]:
    """Counts by outcome; a suite that cannot even start counts as one error. Each line is printed behind `margin`."""
    python = ROOT / ".venv" / SUITES[suite] / "bin" / "python"
    print(f"\n{margin}== tests/{suite}", flush=True)
    argv = [str(python), "-m", "coverage", "run", "-m", "pytest", f"tests/{FOLDERS.get(suite, suite)}"]
    argv += ["--timeout=1500", "--durations=3"]
    environment = os.environ | SETTINGS.get(suite, {})
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(f"{margin}{line}", end="", flush=True)
        last = line if re.search(r"\d+ (passed|failed|skipped|error)", line) else last
    counts = {outcome: int(found[1]) if (found := re.search(rf"(\d+) {outcome}", last)) else 0 for outcome in OUTCOMES}
    if process.wait() and not counts["failed"]:
        counts["error"] = counts["error"] or 1
    return counts


def run_all(suites: list[str]) -> dict[str, int]:
    """Counts of all of them together."""
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    paired = [suite for suite in PAIRED if suite in suites]
    if len(paired) == 1 or memory_gb < LEAST_GB_TO_PAIR:
        paired = []
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda suite: run_suite(suite, f"{suite:10} | "), paired))
    found += [run_suite(suite) for suite in suites if suite not in paired]
    return {outcome: sum(counts[outcome] for counts in found) for outcome in OUTCOMES}


def coverage() -> None:
    """Lines covered, all suites together."""
    tool = [str(ROOT / ".venv/clients/bin/python"), "-m", "coverage"]
    subprocess.run([*tool, "combine", "--quiet"], cwd=ROOT, check=False)
    subprocess.run([*tool, "report", "--skip-covered", "--ignore-errors"], cwd=ROOT, check=False)


def main() -> int:
    suites = sys.argv[1:] or [suite for suite in SUITES if suite != "vllm" or (ROOT / ".venv/vllm").exists()]
    if unknown := set(suites) - set(SUITES):
        print(f"error: no suite {sorted(unknown)}; there are {', '.join(SUITES)}", file=sys.stderr)
        return 2
    total = run_all(suites)
    coverage()
    if "vllm" not in suites and not sys.argv[1:]:
        print("\nvllm was not run: its environment is not there (tools/envs.py vllm makes it)")
    failed = total["failed"] + total["error"]
    print(f"\n{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
