"""A training that is killed again and again, in the short form of kill_fuzz.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.fault(
    what="kill -9 at any moment of a training",
    how="SIGKILL to a whole small training: load, training, checkpoint, merge, conversion, quantization, verification, "
    "publication, promotion",
    lost="nothing: the next start continues, and publishes the same bytes and losses as a training that nobody "
    "disturbed",
)
def test_kills_at_random_moments_lose_nothing(record_property: Callable[[str, object], None]) -> None:
    """The short form of the run in benchmarks/results/kill-fuzz.json: TUNESHIP_KILL_MOMENTS=1000 is the long one."""
    moments = os.environ.get("TUNESHIP_KILL_MOMENTS", "20")
    argv = [sys.executable, "-m", "tests.faults.kill_fuzz", "--moments", moments]
    argv += ["--seed", str(time.time_ns() % 1_000_000)]
    if moments == "20":
        argv += ["--limit-s", "45"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout)
    assert found["moments"] >= 3 and found["faults"] == []
    record_property("times", f"{found['moments']} moments over {found['trainings_published']} trainings")
