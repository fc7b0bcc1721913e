#!/usr/bin/env python3
"""Writes the table of faults in docs/reliability.md from what the tests said when they were run.

usage: tools/faults.py            the table, from benchmarks/results/faults.json, kill-fuzz.json and soak.json
       tools/faults.py --run      runs the tests first (minutes; some need root) and keeps what they say
       tools/faults.py --check    whether the table is what the results say, and the results what the tests claim

A line of the table is a mark of a test, @pytest.mark.fault(what=…, how=…, lost=…). Standard library only.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"
RECORD = RESULTS / "faults.json"
BETWEEN = re.compile(r"(<!-- faults -->\n).*?(<!-- /faults -->)", re.DOTALL)
SUITES = {"modelstore": "clients", "faults": "trainer", "trainer": "trainer"}  # suite -> environment
TEXTS = ("what", "how", "lost")


def marked() -> set[tuple[str, ...]]:
    """What the tests claim: the texts of every mark in their sources."""
    found = set()
    for path in (file for suite in SUITES for file in (ROOT / "tests" / suite).glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
                texts = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
                found.add(tuple(texts[name] for name in TEXTS))
    return found


def run() -> None:
    """Run every marked test in its environment. Raises SystemExit when one fails."""
    entries: list[dict[str, Any]] = []
    for suite, environment in SUITES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "faults.json"
            argv = [str(ROOT / ".venv" / environment / "bin/python"), "-m", "pytest", "-p", "tests.record_faults"]
            settings = {**os.environ, "TUNESHIP_FAULTS": str(file)}
            done = subprocess.run([*argv, f"tests/{suite}"], cwd=ROOT, env=settings, check=False)
            if done.returncode:
                sys.exit(f"error: tests/{suite} failed, so nothing is written")
            entries += json.loads(file.read_text(encoding="utf-8"))
    facts = {"command": "tools/faults.py --run", "date": date.today().isoformat(), "system": platform.system()}
    text = json.dumps(facts | {"processors": os.cpu_count(), "faults": entries}, indent=1, ensure_ascii=False)
    RECORD.write_text(text + "\n", encoding="utf-8")


def table() -> str:
    """The lines of the tests, then those of the long runs that were kept."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [
        f"| {entry['what']} | {entry['how']} | {_times(entry)} | {entry['lost']} | {_link(entry['test'])} |"
        for entry in record["faults"]
    ]
    rows += [*_kills(), *_soak()]
    seen = f"`{record['command']}`, {record['date']}, {record['system']}, {record['processors']} processors."
    head = "| fault | how it is injected | how often | what is lost, and what happens | by |\n|---|---|---|---|---|"
    return "\n".join([seen, "", head, *rows, ""])


def _times(entry: dict[str, Any]) -> str:
    if not entry["passed"]:
        return "not tested where this was run"
    return entry["times"] or ("once" if entry["passed"] == 1 else f"{entry['passed']} cases")


def _link(test: str) -> str:
    file = test.partition("::")[0]
    return f"[{file.rpartition('/')[2]}](../{file})"


def _kills() -> list[str]:
    """The long form of the kills, where it was run and kept."""
    path = RESULTS / "kill-fuzz.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    lost = "; ".join(result["faults"]) or "nothing"
    often = f"{result['moments']} moments over {result['trainings_published']} trainings"
    how = f"`{result['command']}`"
    return [f"| the same, for long | {how} | {often} | {lost} | [by phase](benchmarks.md#kills-at-random-moments) |"]


def _soak() -> list[str]:
    path = RESULTS / "soak.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    lost = ", ".join(f"{count} {what}" for what, count in result["failures"].items()) or "no request"
    often = f"{result['requests']} requests in {result['seconds'] / 60:.0f} minutes"
    how = f"`{result['command']}`: {result['what']}"
    link = "[the memory](benchmarks.md#many-streams-for-a-long-time)"
    return [f"| a server as busy as it can be | {how} | {often} | {lost} | {link} |"]


def mistakes() -> list[str]:
    """Where the table, the results and the tests differ."""
    recorded = {tuple(entry[name] for name in TEXTS) for entry in json.loads(RECORD.read_text())["faults"]}
    wrong = [f"{RECORD.name} has no result of the test of: {texts[0]}. --run" for texts in marked() - recorded]
    wrong += [f"{RECORD.name} has what no test claims: {texts[0]}. --run" for texts in recorded - marked()]
    return wrong + ([] if PAGE.read_text(encoding="utf-8") == page() else [f"{PAGE.name} is not what the results say"])


def page() -> str:
    """The whole page; what stands around the table is kept."""
    return BETWEEN.sub(lambda found: found[1] + table() + found[2], PAGE.read_text(encoding="utf-8"))


def main() -> int:
    if sys.argv[1:] not in ([], ["--run"], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if sys.argv[1:] == ["--check"]:
        wrong = mistakes()
        for each in wrong:
            print(f"{each}: tools/faults.py", file=sys.stderr)
        return 1 if wrong else 0
    if sys.argv[1:]:
        run()
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
