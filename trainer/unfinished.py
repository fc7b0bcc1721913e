"""Finds the run that an equal command began or finished before, so that the same command continues or does nothing."""

from __future__ import annotations

import shutil

from modelstore import Run, Store

MARKER = "fingerprint"


def published(store: Store, config_sha256: str, dataset_sha256: str) -> Run | None:
    """The newest run of the same resolved config and the same data."""
    for run in reversed(store.runs()):
        if run.manifest.config_sha256 == config_sha256 and run.manifest.dataset.get("sha256") == dataset_sha256:
            return run
    return None


def claim(store: Store, fingerprint: str) -> str | None:
    """The id of an unfinished run of the same config and data, or None."""
    root = store.path / "work"
    for marker in sorted(root.glob(f"*/{MARKER}"), reverse=True):
        run_id = marker.parent.name
        if marker.read_text() == fingerprint and not (store.path / "runs" / run_id).exists():
            return run_id
    return None


def begin(store: Store, run_id: str, fingerprint: str) -> None:
    """Say what the checkpoints of this run belong to."""
    folder = store.work(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(fingerprint)


def finish(store: Store, run_id: str) -> None:
    """Checkpoints of a published run are of no use any more."""
    shutil.rmtree(store.work(run_id), ignore_errors=True)
