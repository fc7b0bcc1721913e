#!/usr/bin/env python3
"""Asks pip-audit whether advisories name a version of any lock. Needs a network, and is no part of the checks.

usage: tools/audit.py [OPTION …]      options are pip-audit's, as in -s osv --osv-url URL

Exit code 0: every package was looked up and none is named; 1: some are; 2: some could not be looked up, which is not
the same as none. Standard library only; pip-audit has an environment of its own (tools/envs.py audit).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / ".venv" / "audit" / "bin" / "pip-audit"


@dataclass
class Findings:
    """One line for each package that an advisory names, and for each that nobody could tell about."""

    named: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.named else 2 if self.unknown else 0


def audit(lock: Path, options: list[str], findings: Findings) -> None:
    """Look up the pins of one lock."""
    argv = [str(PROGRAM), "-r", str(lock), "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    done = subprocess.run([*argv, *options], capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        findings.unknown.append(f"{lock.name}: {last[0][:300]}")
        return
    read(lock.name, told, findings)


def read(lock: str, told: list[dict[str, Any]], findings: Findings) -> None:
    """Sort what pip-audit tells of each package. One that it skipped is unknown."""
    for package in told:
        if reason := package.get("skip_reason"):
            findings.unknown.append(f"{lock}: {reason}")
        for advisory in package.get("vulns", []):
            names = ", ".join([advisory["id"], *advisory["aliases"]])
            mended = ", ".join(advisory["fix_versions"]) or "no version yet"
            findings.named.append(f"{lock}: {package['name']} {package['version']}: {names}; mended in {mended}")


def main() -> int:
    if not PROGRAM.exists():
        print(f"error: there is no {PROGRAM}. tools/envs.py audit makes it.", file=sys.stderr)
        return 2
    findings, locks = Findings(), sorted((ROOT / "requirements").glob("*.lock"))
    for lock in locks:
        audit(lock, sys.argv[1:], findings)
    for line in findings.named:
        print(line)
    for line in findings.unknown[:10]:
        print(f"not looked up: {line}", file=sys.stderr)
    print(
        f"{len(locks)} locks: {len(findings.named)} advisories, {len(findings.unknown)} not looked up", file=sys.stderr
    )
    return findings.exit_code


if __name__ == "__main__":
    sys.exit(main())
