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
}


def training_curve(curve: Sequence[Mapping[str, float]]) -> str:
    """Loss by step."""
    figure, axes = _figure("training")
    axes.plot([row["step"] for row in curve], [row["loss"] for row in curve], color=TUNED, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    return _svg(figure, "training")


def load_curves(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """TTFT and TPOT (p50 and p99) and output tokens/s against the load; nothing for fewer than two closed loops."""
    closed = [row for row in rows if "streams" in row and row["completed"]]
    if len(closed) < 2:
        return []
    latency = (("_p50", "o-", TUNED, "p50"), ("_p99", "o--", BASE, "p99"))
    return [
        _panel(closed, "ttft_ms", "TTFT, ms", latency),
        _panel(closed, "tpot_ms", "TPOT, ms", latency),
        _panel(closed, "output_tokens_per_s", "tokens/s", (("", "o-", TUNED, ""),)),
    ]


def _panel(rows: Sequence[Mapping[str, Any]], name: str, title: str, lines: Sequence[tuple[str, str, str, str]]) -> str:
    """One figure of the table against the streams; each line is (suffix of the column, style, colour, label)."""
    figure, axes = _figure(name, (4.0, 2.6))
    streams = [row["streams"] for row in rows]
    for suffix, style, color, label in lines:
        axes.plot(streams, [row[f"{name}{suffix}"] for row in rows], style, color=color, label=label)
    axes.set_title(title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.set_xticks(streams, [str(count) for count in streams])
    axes.set_xlabel("streams")
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=SOFT)
    return _svg(figure, name)


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
    axes.legend(fontsize=8, frameon=False, labelcolor=SOFT, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _svg(figure, "trend")


def _figure(name: str, size: tuple[float, float] = (8, 2.6)) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots()


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
