"""The headline figure of a run's newest evaluation, for the table of runs."""

from __future__ import annotations

import json

from modelstore.store import Store


def newest_summary(store: Store, run_id: str) -> float | None:
    """Strict accuracy of the tuned model in the newest report, between 0 and 1; None where there is none."""
    folder = store.reports(run_id)
    if not folder.is_dir():
        return None
    for report in sorted(folder.iterdir(), reverse=True):
        try:
            return float(json.loads((report / "report.json").read_text(encoding="utf-8"))["summary"]["tuned"]["strict"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
