#!/usr/bin/env python3
"""Seconds from the command to a server whose two models have generated a token, in many starts of `server serve`.

usage: .venv/server/bin/python benchmarks/start_to_ready.py [--starts 20] [--store FOLDER] [--out FILE]

Without --store: the embedded small model as base and as run. A start hashes every file. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import a_store, described, server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    wish = parser.parse_args()
    with a_store(wish.store) as store:
        document = described("seconds from the command to ready, base and tuned on llama.cpp", store)
        starts, loads = [], []
        for _ in range(wish.starts):
            with server(store, "--engine", "llamacpp") as running:
                starts.append(round(running.start_s, 2))
                loads.append(round(os.getloadavg()[0], 1))
    document |= {"starts_s": starts, "load_at_each": loads, "median_s": round(statistics.median(starts), 2)}
    document |= {"least_s": min(starts), "most_s": max(starts)}
    wish.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
