"""bench.json: the figures of a load with what is needed to repeat it."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clients.bench import BenchWish
from clients.endpoint import Endpoint, model_names, served_run
from clients.folders import report_folder
from modelstore import Store


async def write_bench(
    endpoint: Endpoint, wish: BenchWish, rows: Sequence[dict[str, Any]], store: Path, out: Path | None
) -> Path:
    """Into the run's reports, where the report of the run finds it, or to `out`."""
    run_id = served_run(await model_names(endpoint))
    file = out or report_folder(store, run_id) / "bench.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": endpoint.url,
        "run": run_id,
        "load": asdict(wish.load),
        "requests": wish.requests,
        "slo": asdict(wish.slo),
        "client": {"python": platform.python_version(), "openai": version("openai"), "machine": platform.machine()},
        "rows": list(rows),
    }
    file.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return file


def newest_bench(store: Path, run_id: str | None) -> dict[str, Any] | None:
    """The run's newest bench.json; None where there is none."""
    found = sorted(Store(store).reports(run_id).glob("*/bench.json")) if run_id else []
    return dict(json.loads(found[-1].read_text(encoding="utf-8"))) if found else None
