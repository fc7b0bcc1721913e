#!/usr/bin/env python3
"""Runs every test suite in the environment that it belongs to, then prints coverage and one closing line with counts.

usage: tools/test.py [--jobs N] [SUITE …]
suites: trainer containers vllm server conformance e2e faults clients modelstore tools data

Suites run side by side, two by default where there are two processors and 12 GiB: each leaves half of two processors
idle. Lines begin with their suite. vllm runs when it is named or its environment is there (tools/envs.py vllm, 2 GB).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# suite -> environment, the long ones first; architecture and tooling tests need nothing but pytest
SUITES = {
    "trainer": "trainer",
    "containers": "clients",
    "vllm": "server",
    "server": "server",
    "conformance": "server",
    "e2e": "clients",
    "faults": "trainer",
    "clients": "clients",
    "modelstore": "clients",
    "tools": "clients",
    "data": "clients",
}
# a suite whose name is not its folder's, and its settings
FOLDERS = {"vllm": "conformance"}
SETTINGS = {"vllm": {"TUNESHIP_TEST_ENGINE": "vllm"}}
OUTCOMES = ("passed", "failed", "skipped", "error")
MEMORY_FOR_TWO = 12 * 2**30  # bytes


def run_suite(suite: str) -> dict[str, int]:
    """Counts by outcome; a suite that cannot even start counts as one error."""
    python = ROOT / ".venv" / SUITES[suite] / "bin" / "python"
    argv = [str(python), "-m", "coverage", "run", "-m", "pytest", f"tests/{FOLDERS.get(suite, suite)}"]
    argv += ["--timeout=1500", "--durations=3"]
    environment = os.environ | SETTINGS.get(suite, {})
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(f"{suite:<11} {line}", end="", flush=True)
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


def side_by_side() -> int:
    """How many suites this machine has room for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 if (os.cpu_count() or 1) >= 2 and memory >= MEMORY_FOR_TWO else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    parser.add_argument("--jobs", type=int, default=side_by_side(), metavar="N", help="suites at a time")
    wish = parser.parse_args()
    if unknown := set(wish.suites) - set(SUITES):
        parser.error(f"no suite {sorted(unknown)}; there are {', '.join(SUITES)}")
    suites = wish.suites or [suite for suite in SUITES if suite != "vllm" or (ROOT / ".venv/vllm").exists()]
    with ThreadPoolExecutor(wish.jobs) as pool:
        counts = list(pool.map(run_suite, suites))
    total = {outcome: sum(each[outcome] for each in counts) for outcome in OUTCOMES}
    coverage()
    if "vllm" not in suites and not wish.suites:
        print("\nvllm was not run: its environment is not there (tools/envs.py vllm makes it)")
    failed = total["failed"] + total["error"]
    print(f"\n{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
