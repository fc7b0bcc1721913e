"""The pages of an evaluation: one self-contained HTML file and a Markdown summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent
CURVE_WIDTH, CURVE_HEIGHT = 640.0, 160.0


def write_pages(page: dict[str, Any], folder: Path) -> None:
    """report.html and report.md beside the report.json that `page` is."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "number": number}
    template = environment.get_template("report.html.j2")
    run = page["run"]
    curve = curve_points(run["curve"]) if run and len(run["curve"]) > 1 else ""
    (folder / "report.html").write_text(template.render(page=page, curve=curve), encoding="utf-8")
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")


def markdown(page: dict[str, Any]) -> str:
    """Verdict and table, short enough for a pull request."""
    summary = page["summary"]
    head = [
        "| category | questions | base | tuned | difference (95% interval) | p (Holm) |",
        "|---|---|---|---|---|---|",
    ]
    rows = [_table_row(name, part, "p_value_holm") for name, part in summary["by_category"].items()]
    rows.append(_table_row("all", summary, "p_value"))
    failed = summary["base"]["failed"] + summary["tuned"]["failed"]
    note = f"\n{failed} requests failed; they count for neither model.\n" if failed else ""
    return "\n".join([summary["verdict"], "", *head, *rows]) + "\n" + note


def _table_row(name: str, part: dict[str, Any], p_name: str) -> str:
    found = part["comparison"]
    cells = [name, str(part["base"]["questions"]), _accuracy(part["base"]), _accuracy(part["tuned"])]
    if found:
        low, high = 100 * found["low"], 100 * found["high"]
        cells += [f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})", f"{found[p_name]:.2g}"]
    else:
        cells += ["not measured", "-"]
    return "| " + " | ".join(cells) + " |"


def _accuracy(side: dict[str, Any]) -> str:
    if side["strict"] is None:
        return "not measured"
    return f"{percent(side['strict'])} ({percent(side['strict_low'])} to {percent(side['strict_high'])})"


def percent(value: float | None) -> str:
    """A share as a percentage; a missing one is shown as missing."""
    return "not measured" if value is None else f"{100 * value:.1f}%"


def number(value: float | None, digits: int = 0) -> str:
    """A figure with its digits; a missing one is shown as missing."""
    return "not measured" if value is None else f"{value:,.{digits}f}"


def curve_points(curve: Sequence[dict[str, float]]) -> str:
    """Points of an SVG polyline: step to the right, loss upwards from 0."""
    last, top = curve[-1]["step"], max(point["loss"] for point in curve) or 1.0
    return " ".join(
        f"{CURVE_WIDTH * point['step'] / last:.1f},{CURVE_HEIGHT * (1 - point['loss'] / top):.1f}" for point in curve
    )
