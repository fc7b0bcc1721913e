"""Which engine and weights serve a purpose best, by the figures of benchmarks/serve_engines.py (measured.json)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("measured.json")
STREAMS = {"latency": 1, "throughput": 64}  # what each purpose is about when nobody says how many streams there are
ANSWER_TOKENS = 128
TIE = 0.05  # weights with fewer bits have to be faster by more than this


@dataclass(frozen=True)
class Purpose:
    """What the operator wants most, with so many streams at once."""

    goal: str
    streams: int


@dataclass(frozen=True)
class Figures:
    """One engine with one kind of weights under one load: output tokens a second of all streams together, median
    milliseconds to the first token and between two tokens.
    """

    engine: str
    weights: str
    quantization: str | None
    streams: int
    tokens_per_s: float
    ttft_ms: float
    itl_ms: float

    @property
    def answer_s(self) -> float:
        """Until an answer of 128 tokens to a prompt of 512 is complete."""
        return (self.ttft_ms + (ANSWER_TOKENS - 1) * self.itl_ms) / 1000

    @property
    def bits(self) -> int:
        """Of a weight, as the name of its type has them."""
        found = re.search(r"\d+", self.quantization or "")
        return int(found[0]) if found else 16

    def __str__(self) -> str:
        return f"{self.engine} with {self.quantization or f'{self.weights} weights'}"


@dataclass(frozen=True)
class Measured:
    """Everything that was measured on one machine."""

    machine: str
    model: str
    figures: tuple[Figures, ...]


def measured(kind: str) -> Measured | None:
    """On a `gpu` or a `cpu`; None where nothing was."""
    found: dict[str, Any] | None = json.loads(MEASURED.read_text(encoding="utf-8")).get(kind)
    if found is None:
        return None
    return Measured(found["machine"], found["model"], tuple(Figures(**row) for row in found["figures"]))


def best(purpose: Purpose, figures: Iterable[Figures]) -> Figures | None:
    """The fastest at the measured number of streams that is nearest by ratio; of those within 5%, the one with the most
    bits. None where there are no figures.
    """
    found = list(figures)
    if not found:
        return None
    nearest = min({each.streams for each in found}, key=lambda streams: abs(math.log(streams / purpose.streams)))

    def speed(each: Figures) -> float:
        return each.tokens_per_s if purpose.goal == "throughput" else 1 / each.answer_s

    there = [each for each in found if each.streams == nearest]
    fastest = max(map(speed, there))
    close = [each for each in there if speed(each) >= (1 - TIE) * fastest]
    return max(close, key=lambda each: (each.bits, speed(each)))
