"""The Markdown summary of an evaluation, short enough for a pull request."""

from __future__ import annotations

from typing import Any


def markdown(page: dict[str, Any]) -> str:
    """Verdict, table, and what else a reader must know."""
    summary = page["summary"]
    parts = [summary["verdict"], "", *_table(summary)]
    for name, other in summary["others"].items():
        parts += ["", f"**{name}**: {other['verdict']}", "", *_table(other)]
    notes = _notes(page)
    return "\n".join([*parts, *(["", *notes] if notes else [])]) + "\n"


def _table(summary: dict[str, Any]) -> list[str]:
    rows = [_row(name, part, "p_value_holm") for name, part in summary["by_category"].items()]
    return [
        "| category | questions | base | tuned | difference (95% interval) | p (Holm) |",
        "|---|---|---|---|---|---|",
        *rows,
        _row("all", summary, "p_value"),
    ]


def _row(name: str, part: dict[str, Any], p_name: str) -> str:
    found = part["comparison"]
    cells = [name, str(part["base"]["questions"]), accuracy(part["base"]), accuracy(part["tuned"])]
    if found:
        low, high = 100 * found["low"], 100 * found["high"]
        cells += [f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})", f"{found[p_name]:.2g}"]
    else:
        cells += ["not measured", "-"]
    return "| " + " | ".join(cells) + " |"


def _notes(page: dict[str, Any]) -> list[str]:
    summary, gate = page["summary"], page["gate"]
    failed = summary["base"]["failed"] + summary["tuned"]["failed"]
    worse = [name for name, one in gate["categories"].items() if not one["passed"]]
    notes = [f"{failed} requests failed; they count for neither model."] if failed else []
    if worse:
        notes.append(f"The gate at {gate['level']:.0%} did not pass: {', '.join(worse)}.")
    return notes


def accuracy(side: dict[str, Any]) -> str:
    """Share right with its interval; a missing one is shown as missing."""
    if side["strict"] is None:
        return "not measured"
    return f"{percent(side['strict'])} ({percent(side['strict_low'])} to {percent(side['strict_high'])})"


def percent(value: float | None) -> str:
    """A share as a percentage; a missing one is shown as missing."""
    return "not measured" if value is None else f"{100 * value:.1f}%"
