#!/usr/bin/env python3
"""How long a question set takes at several concurrencies on the kit's server.

usage: benchmarks/eval_concurrency.py [--store models] [--run current] [--levels 1,2,4,8,16,32] [--questions N]
       [--out FILE]

To be run in the clients' environment. Every round has a system prompt of its own, so that no round finds another's
prompts in the engine's cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from demo import served  # noqa: E402

from clients.answers import Answer  # noqa: E402
from clients.ask import AskOptions, ask_all  # noqa: E402
from clients.endpoint import Endpoint  # noqa: E402
from clients.engine_facts import slots  # noqa: E402
from clients.questions import Question, read_questions  # noqa: E402
from modelstore import Store  # noqa: E402

MODELS = ("base", "tuned")


def asked(url: str, questions: list[Question], options: AskOptions) -> tuple[float, list[Answer]]:
    """Seconds and answers of one model after the other, as `eval` does it."""
    with tempfile.TemporaryDirectory() as folder:
        began, answers = time.perf_counter(), []
        for model in MODELS:
            file = Path(folder, model)
            answers += asyncio.run(ask_all(Endpoint(url), model, questions, options, file, lambda _: None))
        seconds = time.perf_counter() - began
    if failed := [answer.error for answer in answers if answer.error]:
        raise SystemExit(f"error: {len(failed)} requests failed, the first with {failed[0]}")
    return seconds, answers


def measured(url: str, questions: list[Question], levels: list[int], rounds: int) -> list[dict[str, Any]]:
    """Levels upwards, then downwards, and so on, so that drift falls on all of them."""
    options = AskOptions()
    asked(url, questions[:4], options)  # not measured
    found: dict[int, list[tuple[float, list[Answer]]]] = {level: [] for level in levels}
    for number in range(rounds):
        for level in levels if number % 2 == 0 else reversed(levels):
            system = f"Round {number} at {level}. You answer questions about our handbook."
            found[level].append(asked(url, questions, replace(options, concurrency=level, system=system)))
            print(f"{level} at once: {found[level][-1][0]:.1f} s", file=sys.stderr, flush=True)
    return [_row(level, found[level]) for level in levels]


def _row(level: int, seen: list[tuple[float, list[Answer]]]) -> dict[str, Any]:
    seconds = statistics.median(one for one, _ in seen)
    tokens = statistics.median(sum(answer.output_tokens or 0 for answer in answers) for _, answers in seen)
    first = [answer.ttft_ms for _, answers in seen for answer in answers if answer.ttft_ms is not None]
    return {
        "concurrency": level,
        "seconds": round(seconds, 2),
        "seconds_of_rounds": [round(one, 2) for one, _ in seen],
        "output_tokens": tokens,
        "output_tokens_per_s": round(tokens / seconds, 1),
        "ttft_ms_p50": round(statistics.median(first), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--run", default="current")
    parser.add_argument("--levels", default="1,2,4,8,16,32")
    parser.add_argument("--questions", type=int, default=0, help="Only so many, taken evenly from the set.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    wish = parser.parse_args()
    whole = read_questions(ROOT / "data/handbook-en/questions.jsonl")
    questions = whole[:: max(1, len(whole) // wish.questions)][: wish.questions] if wish.questions else whole
    run = Store(wish.store).run(wish.run)
    with served(run.id, wish.store) as url:
        said = asyncio.run(slots(Endpoint(f"{url}/v1")))
        before = os.getloadavg()
        rows = measured(f"{url}/v1", questions, [int(level) for level in wish.levels.split(",")], wish.rounds)
    result = {
        "command": f"benchmarks/eval_concurrency.py --levels {wish.levels} --questions {len(questions)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"processors": os.cpu_count(), "system": platform.platform(), "load_before": before[0]},
        "packages": {"python": platform.python_version(), "openai": version("openai")},
        "server": {"engine": "llama.cpp", "slots": said, "quantization": run.manifest.serve.get("quantization")},
        "questions": len(questions),
        "models": len(MODELS),
        "rounds": wish.rounds,
        "rows": rows,
    }
    text = json.dumps(result, indent=1)
    if wish.out:
        wish.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
