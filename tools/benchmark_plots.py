#!/usr/bin/env python3
"""Draws docs/plots/*.svg from the result files in benchmarks/results/. To be run in the clients' environment.

usage: .venv/clients/bin/python tools/benchmark_plots.py [--check]      --check only says whether they are up to date
"""

from __future__ import annotations

import io
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
PLOTS, RESULTS = ROOT / "docs" / "plots", ROOT / "benchmarks" / "results"
BLUE, GREY, RED = "#3b6ea8", "#9a9a9a", "#b0413e"


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _bars(axes: Axes, speeds: dict[str, float], unit: str) -> None:
    """The plain stack, which others are compared with, in grey."""
    drawn = axes.barh(list(speeds), list(speeds.values()), color=[GREY if "plain" in said else BLUE for said in speeds])
    axes.bar_label(drawn, [f"{speed:,.0f}" for speed in speeds.values()], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.15)


def training(axes: Axes) -> None:
    """Full-length rows on a GPU."""
    plain = _read("gpu-plain-h200")  # the card of the plans below
    speeds = {"plain stack": plain["result"]["tokens_per_s"], "plain, 16-bit": plain["bf16"]["tokens_per_s"]}
    speeds["the recipe, in the suite"] = _read("gpu-phi3-h200")["result"]["tokens_per_s"]
    names = {"recipe": "the recipe, 15 steps", "16bit": "16-bit, nothing recomputed"}
    found = {each["variant"]: each["tokens_per_s"] for each in _read("gpu-training-full")["results"]}
    _bars(
        axes, speeds | {said: found[name] for name, said in names.items()}, "tokens/s, Phi-3-mini, rows of 2048 tokens"
    )
    axes.axvline(30000, color=RED, linestyle="--", linewidth=1)
    axes.text(29700, -0.35, "goal", color=RED, ha="right")


def chat_rows(axes: Axes) -> None:
    """Rows of chat length on a GPU."""
    names = {
        "plain": "plain stack, padded",
        "recipe-padded": "Unsloth, padded",
        "packed": "packed, 4-bit",
        "16bit-packed": "packed, 16-bit",
    }
    found = {each["variant"]: each["tokens_per_s"] for each in _read("gpu-training-chat")["results"]}
    _bars(
        axes, {said: found[name] for name, said in names.items()}, "useful tokens/s, Phi-3-mini, median row 300 tokens"
    )


def losses(axes: Axes) -> None:
    """The suite's first steps beside the plain stack's."""
    for said, curve, colour in (
        ("plain stack", _read("gpu-plain")["result"]["losses"], GREY),
        ("plain stack, 16-bit residual stream", _read("gpu-plain")["bf16"]["losses"], RED),
        ("the kit", _read("gpu-phi3")["result"]["first_losses"], BLUE),
    ):
        axes.plot(range(1, len(curve) + 1), curve, color=colour, marker=".", label=said)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.legend()


def peaks(axes: Axes) -> None:
    """Predicted against seen peak memory."""
    largest = 0.0
    for said, name, colour in (("GPU", "plan-gpu", BLUE), ("processor", "plan-cpu", GREY)):
        cases = _read(name)["results"]
        seen = [case["peak_bytes"] / 2**30 for case in cases]
        axes.scatter([case["predicted_bytes"] / 2**30 for case in cases], seen, color=colour, label=said)
        largest = max(largest, *seen)
    axes.axline((0, 0), slope=1, color=RED, linestyle="--", linewidth=1)
    axes.set_xlim(0, 1.1 * largest)
    axes.set_ylim(0, 1.1 * largest)
    axes.set_xlabel("predicted peak, GiB")
    axes.set_ylabel("seen peak, GiB")
    axes.legend()


def evaluation(axes: Axes) -> None:
    """A question set at several concurrencies."""
    result = _read("eval-concurrency")
    rows = result["rows"]
    axes.plot([str(row["concurrency"]) for row in rows], [row["seconds"] for row in rows], color=BLUE, marker="o")
    axes.set_ylim(0)
    axes.set_xlabel("requests at once")
    axes.set_ylabel(f"seconds for {result['questions']} questions, base and tuned")


def served(kind: str, axes: Axes) -> None:
    """Every engine and kind of weights, by streams."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"serving-{kind}*.json"))]
    for case, label in [(case, result["label"]) for result in results for case in result["cases"]]:
        rows = [load for load in case.get("loads", []) if load["path"] == "gateway" and "error" not in load]
        streams = list(dict.fromkeys(row["streams"] for row in rows))
        speeds = [
            statistics.median(row["output_tokens_per_s"] for row in rows if row["streams"] == one) for one in streams
        ]
        axes.plot(
            [str(one) for one in streams], speeds, marker="o", label=", ".join(filter(None, [case["case"], label]))
        )
    axes.set_ylim(0)
    axes.set_xlabel("streams")
    axes.set_ylabel("output tokens/s")
    axes.legend(fontsize=7)


DRAWN: dict[str, Callable[[Axes], None]] = {
    "gpu-training": training,
    "gpu-chat-rows": chat_rows,
    "gpu-losses": losses,
    "peak-memory": peaks,
    "eval-concurrency": evaluation,
    "serving-cpu": partial(served, "cpu"),
    "serving-gpu": partial(served, "gpu"),
}


def drawn(draw: Callable[[Axes], None]) -> bytes:
    """One plot as SVG: the same bytes for the same results."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "tuneship", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "font.size": 9}):
        figure = Figure(figsize=(6.4, 2.9), layout="constrained")
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def main() -> int:
    fresh = {PLOTS / f"{name}.svg": drawn(draw) for name, draw in DRAWN.items()}
    old = [path.name for path, svg in fresh.items() if not path.exists() or path.read_bytes() != svg]
    if sys.argv[1:] == ["--check"]:
        print(f"old: {', '.join(old)}; run tools/benchmark_plots.py" if old else "docs/plots is up to date")
        return bool(old)
    PLOTS.mkdir(exist_ok=True)
    for path, svg in fresh.items():
        path.write_bytes(svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
