#!/usr/bin/env python3
"""Writes server/measured.json, by which `serve --for` chooses, from benchmarks/results/serving-*.json.

usage: tools/measured.py [--check]      --check only says whether it is up to date. Standard library only.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET, RESULTS = ROOT / "server" / "measured.json", ROOT / "benchmarks" / "results"


def figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each case and number of streams, as clients of the gateway saw it; medians over rounds."""
    rows = []
    for case in result["cases"]:
        engine, _, rest = case["case"].partition("-")
        weights, _, quantization = ("gguf", "", rest) if engine == "llamacpp" else rest.partition("-")
        seen = [load for load in case.get("loads", []) if load["path"] == "gateway" and load.get("itl_ms_p50")]
        for streams in dict.fromkeys(load["streams"] for load in seen):
            rounds = [load for load in seen if load["streams"] == streams]
            names = {"tokens_per_s": "output_tokens_per_s", "ttft_ms": "ttft_ms_p50", "itl_ms": "itl_ms_p50"}
            medians = {name: statistics.median(load[key] for load in rounds) for name, key in names.items()}
            row = {"engine": engine, "weights": weights, "quantization": quantization or None, "streams": streams}
            rows.append(row | medians)
    return rows


def table() -> str:
    """The whole file."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("serving-*.json")):
        result = json.loads(path.read_text())
        if result["label"]:  # an engine that not everybody has, or another card
            continue
        machine = result["gpu"] or f"{result['machine']['processors']} processors"
        place = found.setdefault("gpu" if result["gpu"] else "cpu", {"machine": machine, "model": result["model"]})
        place["figures"] = [*place.get("figures", []), *figures(result)]
    return json.dumps(found, indent=1) + "\n"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        fresh = TARGET.exists() and TARGET.read_text() == table()
        print("server/measured.json is up to date" if fresh else "server/measured.json is old: tools/measured.py")
        return 0 if fresh else 1
    TARGET.write_text(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
