#!/usr/bin/env python3
"""Writes the table of images in docs/containers.md from benchmarks/results/containers-*.json. Standard library only.

usage: tools/container_page.py [--check]      --check only says whether the page is up to date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "containers.md"
BETWEEN = re.compile(r"(<!-- sizes -->\n).*?(<!-- /sizes -->)", re.DOTALL)


def table(result: dict[str, Any]) -> str:
    """Sizes and build times as they were seen."""
    rows = "\n".join(_row(image) for image in result["images"])
    base_mb = result["base_bytes"] / 1e6
    docker = f"Docker {result['docker']}, Compose {result['compose']}"
    load = f", load {result['load_before']} before" if "load_before" in result else ""
    return f"""`{result["command"]}`, {result["date"]}, commit {result["commit"][:12]}: {docker},
{result["threads"]} threads{load}, {result["system"]}. Built without layers of before, with pip's
downloads in the builder's cache. {base_mb:.0f} MB of each image are the base.

| image | build | on disk | compressed | goal on disk |
|---|---|---|---|---|
{rows}
{"".join(_probe(image) for image in result["images"])}"""


def _probe(image: dict[str, Any]) -> str:
    """How far an image for GPUs came where there is none."""
    if "probe" not in image:
        return ""
    found = [f"{name} {said}" for name, said in image["probe"].items()]
    return f"\nStarted there without a GPU, as its unprivileged user and with a read-only root: {'; '.join(found)}.\n"


def _row(image: dict[str, Any]) -> str:
    size, goal = image["bytes"] / 1e6, image.get("budget_mb")
    met = "-" if goal is None else f"< {goal} MB: {'met' if size < goal else 'missed'}"
    packed = image.get("compressed_bytes")
    shown = "-" if packed is None else f"{packed / 1e6:.0f} MB"
    return f"| {image['image']} | {image['build_s']:.0f} s | {size:.0f} MB | {shown} | {met} |"


def page() -> str:
    files = (ROOT / "benchmarks" / "results").glob("containers-*.json")
    tables = "\n".join(table(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(files))
    return BETWEEN.sub(lambda found: found[1] + tables + found[2], PAGE.read_text(encoding="utf-8"))


def main() -> int:
    written = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != written:
            print(f"{PAGE} is not what the results say: tools/container_page.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
