"""Where the results of a run lie."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from modelstore import Store, UserError


def newest_report(store_path: Path, ref: str) -> Path:
    """The report.json of a run's newest evaluation. Raises UserError when there is none."""
    store = Store(store_path)
    run = store.run(ref)
    found = sorted(store.reports(run.id).glob("*/report.json"))
    if not found:
        raise UserError(f"{run.id} has not been evaluated yet: `make serve RUN={run.id}`, then `make eval`.")
    return found[-1]


def report_folder(store: Path, run_id: str | None) -> Path:
    """A new folder: in the store where the run is known, else below reports/."""
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Store(store).reports(run_id) / stamp if run_id else Path("reports") / stamp
