"""What a report shows beside the evaluation itself: the newest load test, human ratings, a judge's verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clients.bench_file import newest_bench
from clients.ratings import FILE, read_ratings, summarise_ratings


def with_extras(page: dict[str, Any], folder: Path, store: Path) -> dict[str, Any]:
    """The page with `bench`, `human` and `judge` as they are now; None where there is none."""
    run_id = page["run"]["id"] if page["run"] else None
    judge = folder / "judge.json"
    return page | {
        "bench": newest_bench(store, run_id),
        "human": summarise_ratings(read_ratings(folder / FILE)),
        "judge": json.loads(judge.read_text(encoding="utf-8")) if judge.exists() else None,
    }
