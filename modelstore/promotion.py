"""What speaks against promoting a run, and the record of who promoted what, when and why."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelstore.files import sync
from modelstore.manifest import Manifest

HISTORY = "history.jsonl"
GATE = "gate.json"


@dataclass(frozen=True)
class Promotion:
    """One change of the channel `current`. `against` is what had to be forced."""

    time: str
    action: str
    run: str
    before: str | None
    by: str
    why: str = ""
    forced: bool = False
    against: tuple[str, ...] = ()


def objections(manifest: Manifest, reports: Path) -> list[str]:
    """Failed checks of the verification and the newest evaluation gate, if it failed; one sentence each."""
    failed = [check for check in manifest.verification if not check.passed]
    found = [f"the verification '{check.name}' failed: {check.figures}, wanted {check.limit}" for check in failed]
    gate = newest_gate(reports)
    if gate and gate["passed"] is not True:
        found.append(f"the evaluation gate failed: {gate['path']}")
    return found


def newest_gate(reports: Path) -> dict[str, Any] | None:
    """The newest <reports>/<time>/gate.json with its `path`; None without one. One that cannot be read has failed."""
    folders = sorted(reports.iterdir(), reverse=True) if reports.is_dir() else []
    path = next((folder / GATE for folder in folders if (folder / GATE).is_file()), None)
    if path is None:
        return None
    try:
        gate = json.loads(path.read_bytes())
        return {**gate, "passed": gate["passed"] is True, "path": str(path)}
    except (OSError, ValueError, KeyError, TypeError):
        return {"passed": False, "path": f"{path} cannot be read"}


def append(channels: Path, promotion: Promotion) -> None:
    """Add a line to the history; it is on the disk when this returns."""
    path = channels / HISTORY
    cut_off = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut_off + json.dumps(asdict(promotion), ensure_ascii=False) + "\n")
    sync(path)


def history(channels: Path) -> Iterator[dict[str, Any]]:
    """Every promotion, oldest first. A line that a crash cut off is left out."""
    path = channels / HISTORY
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def this_user() -> str:
    """Who runs this program; containers may have no name for their user."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
