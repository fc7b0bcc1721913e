"""The files of an evaluation: report.json, one self-contained HTML page, a Markdown summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.report_markdown import markdown, number, percent

TEMPLATES = Path(__file__).parent
CURVE_WIDTH, CURVE_HEIGHT = 640.0, 160.0


def write_report(page: dict[str, Any], folder: Path) -> Path:
    """report.json, report.html and report.md; returns the page."""
    (folder / "report.json").write_text(json.dumps(page, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")
    html = folder / "report.html"
    html.write_text(render(page), encoding="utf-8")
    return html


def render(page: dict[str, Any]) -> str:
    """The page as one text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "number": number}
    run = page["run"]
    curve = curve_points(run["curve"]) if run and len(run["curve"]) > 1 else ""
    return environment.get_template("report.html.j2").render(page=page, curve=curve)


def curve_points(curve: Sequence[dict[str, float]]) -> str:
    """Points of an SVG polyline: step to the right, loss upwards from 0."""
    last, top = curve[-1]["step"], max(point["loss"] for point in curve) or 1.0
    return " ".join(
        f"{CURVE_WIDTH * point['step'] / last:.1f},{CURVE_HEIGHT * (1 - point['loss'] / top):.1f}" for point in curve
    )
