"""What a profile says of a GPU's waits, from made-up kernels: there is no GPU here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.step_clock import idle


def test_the_waits_of_the_busiest_stream_are_told_longest_first() -> None:
    copies = [(9, start, start + 400.0, "copy") for start in range(0, 9000, 1000)]
    kernels = [
        (7, 0.0, 1000.0, "a"),
        (7, 3000.0, 4000.0, "b"),
        (7, 3500.0, 3600.0, "within b"),
        (7, 4000.0, 5000.0, "a"),
    ]
    found = idle([*copies, *kernels, (7, 9000.0, 9500.0, "b"), (7, 9501.0, 9600.0, "c")])
    assert found["idle_ms_of_a_step"] == 3.0  # 6 ms between a and b, of two steps
    assert found["waits"][0] == {"before": "a", "after": "b", "ms": 3.0, "longest_ms": 4.0, "times": 1}
    assert [wait["before"] for wait in found["waits"]] == ["a", "b"]


def test_a_profile_without_kernels_tells_no_waits() -> None:
    assert idle([]) == {}
