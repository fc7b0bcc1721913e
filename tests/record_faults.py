"""A pytest plugin: runs only the tests that are lines of docs/reliability.md, and writes what came of them.

Loaded by `tools/faults.py --run` with -p tests.record_faults; the file is named by TUNESHIP_FAULTS.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    """One entry for each mark `fault` of a test: its texts, outcomes by case, and what the test says of its count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[tuple[str, str], dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        unmarked = [item for item in items if not item.get_closest_marker("fault")]
        items[:] = [item for item in items if item not in unmarked]
        config.hook.pytest_deselected(items=unmarked)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report: pytest.TestReport = yield
        if report.when == "call" or report.outcome != "passed":
            for mark in item.iter_markers("fault"):
                self._add(item, mark.kwargs, report)
        return report

    def _add(self, item: pytest.Item, texts: dict[str, str], report: pytest.TestReport) -> None:
        test = item.nodeid.partition("[")[0]
        new = {**texts, "test": test, "passed": 0, "skipped": 0, "failed": 0, "times": ""}
        entry = self.entries.setdefault((test, texts["what"]), new)
        entry[report.outcome] += 1
        entry["times"] = str(dict(report.user_properties).get("times", entry["times"]))

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(list(self.entries.values()), indent=1) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(Path(os.environ["TUNESHIP_FAULTS"])))
