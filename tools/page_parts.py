"""What several parts of the benchmark page are made of."""

from __future__ import annotations

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
