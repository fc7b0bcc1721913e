"""The conformance suite of the endpoint on an engine that has the GPU: the tests of tests/conformance as they are, but
for those of the gateway's own description.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from typing import Any
from xml.etree import ElementTree

from tests.gpu.phi3 import ROOT
from tests.gpu.serving import program


def conformance(wish: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Counts, and the names of what failed or was left out."""
    report, log = wish.work / f"conformance-{engine}.xml", wish.work / f"conformance-{engine}.log"
    argv = [program("server")[0], "-m", "pytest", "tests/conformance", f"--junitxml={report}"]
    argv += ["--ignore=tests/conformance/test_description.py"]  # the same on every engine
    environment = {**os.environ, "TUNESHIP_TEST_ENGINE": engine}
    with log.open("w") as said:
        subprocess.run(argv, cwd=ROOT, env=environment, stdout=said, stderr=said, check=False)
    if not report.exists():
        raise RuntimeError(log.read_text()[-3000:])
    cases = ElementTree.parse(report).iter("testcase")
    found = {name: _how(case) for case in cases for name in [f"{case.get('classname')}::{case.get('name')}"]}
    failed = {name: said for name, (how, said) in found.items() if how in ("failure", "error")}
    skipped = {name: said for name, (how, said) in found.items() if how == "skipped"}
    counts = {"passed": len(found) - len(failed) - len(skipped), "failed": len(failed), "skipped": len(skipped)}
    done = bool(found) and not failed
    return {"counts": counts, "failed": failed, "skipped": skipped, "checks": {f"conformance on {engine}": done}}


def _how(case: ElementTree.Element) -> tuple[str, str]:
    """What became of a test, and the end of what it said."""
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            return child.tag, f"{child.get('message') or ''}\n{child.text or ''}"[-600:].strip()
    return "passed", ""
