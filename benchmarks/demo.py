#!/usr/bin/env python3
"""Measures `make demo` on a clean clone: seconds with and without a package cache, memory, accuracy.

usage: benchmarks/demo.py RESULT.json

Clones HEAD into a temporary folder, makes the environments once without pip's cache (removed again), then runs
`make demo`. Memory is the resident memory of the whole process tree, sampled every half second (shared pages count
in every process, so it is an upper bound).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLOSING = re.compile(r"demo: base ([\d.]+)% tuned ([\d.]+)% multi-hop ([\d.]+)% seconds (\d+) report (\S+)")
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(root_pid: int) -> int:
    """Resident memory of a process and all its descendants, now."""
    parents, resident = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)], resident[int(stat.parent.name)] = int(fields[1]), int(fields[21]) * PAGE
    family, grown = {root_pid}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        grown = bool(more)
        family |= more
    return sum(resident.get(pid, 0) for pid in family)


def watched(argv: list[str], folder: Path, environment: dict[str, str]) -> tuple[str, float, int]:
    """stdout, seconds and peak bytes of a command."""
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.5)

    watcher = threading.Thread(target=sample)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(f"{argv} failed with exit code {process.returncode}")
    return output, round(time.monotonic() - began, 1), peak


def measure(folder: Path) -> dict[str, Any]:
    """The figures of one clean clone."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    setup = [sys.executable, "tools/envs.py"]
    _, cold_s, _ = watched(setup, folder, {**os.environ, "PIP_NO_CACHE_DIR": "1"})
    subprocess.run(["rm", "-rf", str(folder / ".venv")], check=True)
    output, demo_s, peak = watched(["make", "demo"], folder, dict(os.environ))
    found = CLOSING.search(output)
    if not found:
        sys.exit(f"make demo did not close as promised:\n{output}")
    report = json.loads((folder / found[5]).with_name("report.json").read_text())
    return {
        "demo_warm_cache_s": demo_s,
        "environments_without_cache_s": cold_s,
        "closing_line": found[0],
        "base_percent": float(found[1]),
        "tuned_percent": float(found[2]),
        "multi_hop_percent": float(found[3]),
        "peak_resident_bytes": peak,
        "training": report["run"]["training"],
        "verification": report["run"]["verification"],
        "packages": report["run"]["packages"],
        "hardware": report["run"]["hardware"],
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder) / "clone")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    command = "benchmarks/demo.py benchmarks/results/demo-cpu.json"
    facts = {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit}
    facts |= {"system": platform.platform()}
    target.write_text(json.dumps(facts | figures, indent=1) + "\n")
    print(json.dumps(facts | figures, indent=1))


if __name__ == "__main__":
    main()
