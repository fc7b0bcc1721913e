"""Finds the run that an equal command began or finished before, so that the same command continues or does nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelstore import Run, Store
from modelstore.files import sync, write_atomically
from trainer.checkpoints import checkpoints, step_of

MARKER, BEGUN = "fingerprint", "begun.json"
IGNORED = ("data.path", "data.questions", "training.processes")  # left out of the config's hash too


def published(store: Store, config_sha256: str, dataset_sha256: str) -> Run | None:
    """The newest run of the same resolved config and the same data."""
    for run in reversed(store.runs()):
        if run.manifest.config_sha256 == config_sha256 and run.manifest.dataset.get("sha256") == dataset_sha256:
            return run
    return None


def claim(store: Store, fingerprint: str) -> str | None:
    """The id of an unfinished run of the same config and data, or None."""
    for folder in _unfinished(store):
        if (folder / MARKER).read_text() == fingerprint:
            return folder.name
    return None


def begin(store: Store, run_id: str, fingerprint: str, config: Mapping[str, Any]) -> None:
    """Say what the checkpoints of this run belong to. A new folder appears with both files in it: one without would
    never be claimed, and stay for good.
    """
    folder = store.work(run_id)
    is_new = not folder.exists()
    # the same command uses the same name, so that one which was killed here leaves nothing that the next does not take
    written = folder.with_name(f".{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.new") if is_new else folder
    written.mkdir(parents=True, exist_ok=True)
    write_atomically(written / BEGUN, json.dumps(config).encode())
    write_atomically(written / MARKER, fingerprint.encode())
    if is_new:
        written.rename(folder)
        sync(folder.parent)


def finish(store: Store, run_id: str) -> None:
    """Checkpoints of a published run are of no use any more."""
    shutil.rmtree(store.work(run_id), ignore_errors=True)


def progress(store: Store, run_id: str) -> str:
    """How far an unfinished run came."""
    if (store.work(run_id) / "finished").exists():
        return "its training is complete"
    found = checkpoints(store.work(run_id) / "checkpoints")
    return f"from its checkpoint of step {step_of(found[-1])}" if found else "which has no checkpoint yet"


def refusals(store: Store, fingerprint: str, config: Mapping[str, Any]) -> list[str]:
    """Unfinished runs of this config's name that cannot be continued, each with what changed since."""
    found = []
    for folder in _unfinished(store):
        before = _begun(folder)
        if before and before.get("name") == config["name"] and (folder / MARKER).read_text() != fingerprint:
            changed = list(_changes(before, config))
            if (folder / MARKER).read_text().split()[1:] != fingerprint.split()[1:]:
                changed.append("the data's content changed")
            found.append(f"run {folder.name} is unfinished and is not continued: {'; '.join(changed)}")
    return found


def _unfinished(store: Store) -> list[Path]:
    markers = sorted((store.path / "work").glob(f"*/{MARKER}"), reverse=True)
    folders = [marker.parent for marker in markers if not marker.parent.name.startswith(".")]
    return [folder for folder in folders if not store.has_run(folder.name)]


def _begun(folder: Path) -> dict[str, Any] | None:
    try:
        read: Any = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = _flat(before), _flat(now)
    for key in sorted(old.keys() | new.keys()):
        if key not in IGNORED and old.get(key) != new.get(key):
            yield f"{key} was {old.get(key)!r} and is {new.get(key)!r}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
