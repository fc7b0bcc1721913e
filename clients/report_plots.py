"""Curves as SVG that lives inside a page: its colours are the page's, so they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

# colours that matplotlib writes, and the page's variables that take their place
INK, SOFT, LINE, BASE, TUNED = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", BASE: "--base", TUNED: "--tuned"}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
}


def training_curve(curve: Sequence[Mapping[str, float]]) -> str:
    """Loss by step."""
    figure, axes = _figure("training")
    axes.plot([row["step"] for row in curve], [row["loss"] for row in curve], color=TUNED, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    return _svg(figure, "training")


def load_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """TTFT and TPOT (p50 and p99) and output tokens/s against the load; "" for fewer than two closed loops."""
    closed = [row for row in rows if "streams" in row and row["completed"]]
    if len(closed) < 2:
        return ""
    figure, panels = _figure("load", 3)
    streams = [row["streams"] for row in closed]
    for axes, name, title in zip(panels, ("ttft_ms", "tpot_ms"), ("TTFT, ms", "TPOT, ms"), strict=False):
        axes.plot(streams, [row[f"{name}_p50"] for row in closed], "o-", color=TUNED, label="p50")
        axes.plot(streams, [row[f"{name}_p99"] for row in closed], "o--", color=BASE, label="p99")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
    panels[2].plot(streams, [row["output_tokens_per_s"] for row in closed], "o-", color=TUNED)
    panels[2].set_title("tokens/s", fontsize=10)
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.set_xticks(streams, [str(count) for count in streams])
        axes.set_xlabel("streams")
    return _svg(figure, "load")


def trend(points: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of base and tuned of each evaluation, in per cent, with intervals, oldest left."""
    figure, axes = _figure("trend")
    for shift, who, color in ((-0.06, "base", BASE), (0.06, "tuned", TUNED)):
        measured = [(place, point[who]) for place, point in enumerate(points, 1) if point[who]["strict"] is not None]
        middle = [100 * side["strict"] for _, side in measured]
        below = [100 * max(0.0, side["strict"] - side["strict_low"]) for _, side in measured]
        above = [100 * max(0.0, side["strict_high"] - side["strict"]) for _, side in measured]
        places = [place + shift for place, _ in measured]
        axes.errorbar(places, middle, [below, above], fmt="o-", color=color, ecolor=color, capsize=3, label=who)
    axes.set_ylim(0, 100)
    axes.set_xlim(0.5, len(points) + 0.5)
    axes.set_xticks(range(1, len(points) + 1))
    axes.legend(fontsize=8)
    return _svg(figure, "trend")


def _figure(name: str, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        return figure, figure.subplots(1, panels)


def _svg(figure: Any, name: str) -> str:
    """The drawing as an element: no prologue, ids that are unique in the page, the page's colours."""
    from matplotlib import rc_context

    drawn = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text
