"""What the benchmark page says of planning and of faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.page_parts import beside


def trust(results: Path) -> list[str]:
    """Sections for the plan's predictions and for the kills, where they were measured."""
    kills = results / "kill-fuzz.json"
    return [_plan(results), *([_kills(json.loads(kills.read_text()))] if kills.exists() else [])]


def _kills(result: dict[str, Any]) -> str:
    """The random kills by the phase that they hit."""
    lost = "\n".join(f"- {fault}" for fault in result["faults"]) or "Nothing was lost."
    rows = "\n".join(f"| {phase} | {count} |" for phase, count in result["by_phase"].items())
    return f"""## Kills at random moments

`{result["command"]}`, {result["seconds"]} s
([what is done](reliability.md#kills-at-random-moments)): {result["moments"]} kills over {result["trainings_published"]}
trainings; {result["starts_that_continued"]} of the killed starts had continued an earlier one.
{lost}

| phase | kills |
|---|---|
{rows}
"""


def _plan(results: Path) -> str:
    """Predicted against seen peaks; what was not measured is said."""
    gpu = json.loads((results / "plan-gpu.json").read_text())
    cpu = results / "plan-cpu.json"
    measured = json.loads(cpu.read_text()) if cpu.exists() else None
    if measured:
        said = (
            f"On a processor: `{measured['command']}`, {measured['date']}, {measured['hardware']['processor']}, torch "
            f"{measured['packages']['torch']}; largest difference {measured['largest_off']:.1%} (goal: 15%).\n\n"
            f"{_peaks(measured['results'])}"
        )
    else:
        said = "On a processor the script was not run yet: `python -m benchmarks.plan_memory --out RESULT`."
    return f"""## Predicted against seen peak memory

[planning.md](planning.md) says how peaks are predicted. On a GPU: `{gpu["command"]}`, {gpu["date"]},
{gpu["hardware"]["gpu"]}, torch {gpu["packages"]["torch"]}, {gpu["model"]}{beside(gpu)}. Largest difference
{gpu["largest_off"]:.1%} (goal: 10%).

{_peaks(gpu["results"])}

{said}

![Predicted and seen peaks](plots/peak-memory.svg)
"""


def _peaks(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {row['case']} | {row['predicted_bytes'] / 2**30:.2f} GiB | {row['peak_bytes'] / 2**30:.2f} GiB "
        f"| {row['off']:+.1%} |"
        for row in rows
        if "off" in row
    ]
    return "\n".join(["| configuration | predicted | seen | off |", "|---|---|---|---|", *lines])
