"""What several parts of the benchmark page are made of."""

from __future__ import annotations

import statistics
from typing import Any


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """In Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def goal(text: str, reached: bool) -> str:
    """The goal, and whether it was missed."""
    return text if reached else f"{text} (missed)"


def over_seeds(percent: dict[str, float]) -> float:
    """The mean of what each seed gave."""
    return sum(percent.values()) / len(percent)


def beside(result: dict[str, Any]) -> str:
    """What else is to be known of a run."""
    return "".join(f"; {result[key]}" for key in ("beside", "gateway") if key in result)


def source(result: dict[str, Any]) -> str:
    """What made the result, where and when."""
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    return (
        f"`{result['command']}`, {result['date']}: {result['model']}, {result['machine']['processors']} processors, "
        f"Python {result['machine']['python']}, {packages}; load average {result['load_before']} when it "
        f"began{beside(result)}."
    )


def median(loads: list[dict[str, Any]], path: str, name: str) -> float:
    """Of a figure in all loads that were asked in this way."""
    return statistics.median(load[name] or 0.0 for load in loads if load["path"] == path)


def labelled(case: dict[str, Any], label: str) -> dict[str, Any]:
    """The case with what sets it apart in its name."""
    return {**case, "case": f"{case['case']}, {label}"} if label else case


def cell(text: str) -> str:
    """As the text of one field of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
