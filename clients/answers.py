"""Answers on disk: one line each, written the moment that it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Answer:
    """One answer, or why there is none: then `error` says so and the figures mean nothing.

    ttft_ms: request to first token. tokens_per_s: output tokens after the first, per second. sample counts from 0.
    engine: the server's fingerprint of its build, where it sends one.
    """

    question_id: str
    model: str
    text: str
    error: str
    finish_reason: str
    ttft_ms: float | None
    seconds: float
    output_tokens: int | None
    attempts: int
    sample: int = 0
    engine: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """None where it cannot be told."""
        if self.ttft_ms is None or not self.output_tokens or self.output_tokens < 2:
            return None
        streaming_s = self.seconds - self.ttft_ms / 1000
        return (self.output_tokens - 1) / streaming_s if streaming_s > 0 else None


@contextmanager
def appending(results: Path) -> Iterator[TextIO]:
    """The file, open at its end; a line that a crash has cut off is closed first, lest it swallow the next."""
    with results.open("a+", encoding="utf-8") as file:
        if file.tell() and not _ends_a_line(results):
            file.write("\n")
        yield file


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def keep(file: TextIO, answer: Answer) -> None:
    """One line, flushed."""
    file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
    file.flush()


def read_answers(results: Path) -> list[Answer]:
    """What was answered so far; a line that was cut off by a crash is left out."""
    if not results.exists():
        return []
    answers = []
    with results.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            try:
                answers.append(Answer(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return answers
