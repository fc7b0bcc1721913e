"""What a report says about where a model comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelstore import Run, Store, UserError


def of_run(store_path: Path, run_id: str | None) -> dict[str, Any] | None:
    """What the run's manifest says, and its training curve; None where the store is not on this machine."""
    try:
        run = Store(store_path).run(run_id) if run_id else None
    except UserError:
        return None
    return _described(run) if run else None


def _described(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "id": run.id,
        "created": manifest.created,
        "base": manifest.base,
        "dataset": manifest.dataset,
        "config_sha256": manifest.config_sha256,
        "training": manifest.training,
        "hardware": manifest.hardware,
        "packages": manifest.packages,
        "serve": manifest.serve,
        "sizes": {a.quantization: a.bytes for a in manifest.artifacts if a.kind == "gguf"},
        "verification": [asdict(check) for check in manifest.verification],
        "contamination": _contamination(run),
        "curve": _curve(run.path / "training.jsonl"),
    }


def _curve(log: Path) -> list[dict[str, float]]:
    """Step and loss of every logged step, with the rate and memory where they were logged."""
    if not log.exists():
        return []
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    fields = ("step", "loss", "tokens_per_s", "memory_bytes")
    return [{name: row[name] for name in fields if row.get(name) is not None} for row in rows if "loss" in row]


def _contamination(run: Run) -> dict[str, Any] | None:
    """How near the evaluation questions come to the training data, as the trainer found it."""
    try:
        report = json.loads((run.path / "prepare.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = report.get("contamination")
    return found if isinstance(found, dict) else None
