"""Rows become training examples: deduplicated, split, rendered, cut to length; everything that was done is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import UserError
from trainer.contamination import Contamination, check_contamination
from trainer.render import Example, render
from trainer.rows import BadRow, Conversation, Rows

__all__ = ["Example", "PrepareReport", "Prepared", "prepare"]


@dataclass(frozen=True)
class PrepareReport:
    """What was done to the data. Tokens are counted after cutting; `trained_share` is between 0 and 1."""

    format: str
    rows: int
    bad_rows: list[BadRow]
    duplicates: int
    conflicts: list[tuple[int, int]]
    truncated: int
    dropped_without_answer: int
    tokens: int
    trained_tokens: int
    trained_share: float
    length_p50: int
    length_p95: int
    length_max: int
    sample: str
    contamination: Contamination | None


@dataclass(frozen=True)
class Prepared:
    """Examples ready for training; `prompts` are first questions with the answers that were trained on them."""

    train: list[Example]
    held_out: list[Example]
    prompts: list[tuple[str, str]]
    report: PrepareReport


def prepare(
    rows: Rows,
    tokenizer: Any,
    *,
    max_length_tokens: int,
    held_out_share: float,
    seed: int,
    questions: Path | None,
) -> Prepared:
    """Raises UserError when nothing would be trained, and when an evaluation question occurs in the data."""
    kept, lines, duplicates = _without_duplicates(rows)
    contamination = check_contamination(questions, [_prompt(c) for c in kept], lines) if questions else None
    examples = [render(conversation, tokenizer) for conversation in kept]
    cut = [_cut(example, max_length_tokens) for example in examples]
    usable = [number for number, example in enumerate(cut) if any(example.completion_mask)]
    if not usable:
        raise UserError(
            f"Not one token of {rows.path} would be trained: every answer lies beyond model.max_length_tokens = "
            f"{max_length_tokens}. Raise it (the longest row has {max(len(e.input_ids) for e in examples)} tokens)."
        )
    held_out = {number for number in usable if _is_held_out(kept[number], held_out_share, seed)}
    train = [cut[number] for number in usable if number not in held_out]
    if not train:
        raise UserError(f"data.held_out_share = {held_out_share} leaves no row of {rows.path} to train on.")
    chats = [kept[number] for number in usable if number not in held_out and kept[number][0][0] != "text"]
    prompts = [(_prompt(chat), chat[-1][1]) for chat in chats if len(chat) == 2]
    truncated = sum(len(example.input_ids) > max_length_tokens for example in examples)
    counts = (duplicates, _conflicts(kept, lines), truncated, len(cut) - len(usable))
    report = _report(rows, [cut[number] for number in usable], counts, tokenizer, contamination)
    return Prepared(train, [cut[number] for number in sorted(held_out)], prompts, report)


def _without_duplicates(rows: Rows) -> tuple[list[Conversation], list[int], int]:
    first: dict[Conversation, int] = {}
    for conversation, line in zip(rows.conversations, rows.lines, strict=True):
        first.setdefault(conversation, line)
    return list(first), list(first.values()), len(rows.conversations) - len(first)


def _conflicts(kept: Sequence[Conversation], lines: Sequence[int]) -> list[tuple[int, int]]:
    """Line numbers of rows that give two answers to one question."""
    first: dict[tuple[tuple[str, str], ...], int] = {}
    found = []
    for conversation, line in zip(kept, lines, strict=True):
        asked = conversation[:-1] or conversation
        if first.setdefault(asked, line) != line:
            found.append((first[asked], line))
    return found


def _prompt(conversation: Conversation) -> str:
    return next((content for role, content in conversation if role == "user"), conversation[0][1])


def _is_held_out(conversation: Conversation, share: float, seed: int) -> bool:
    """Decided by the question alone, so that two answers to it never stand on both sides of the split."""
    digest = hashlib.sha256(f"{seed}\0{_prompt(conversation)}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def _cut(example: Example, length: int) -> Example:
    return Example(example.input_ids[:length], example.completion_mask[:length])


def _report(
    rows: Rows,
    examples: Sequence[Example],
    counts: tuple[int, list[tuple[int, int]], int, int],
    tokenizer: Any,
    contamination: Contamination | None,
) -> PrepareReport:
    lengths = sorted(len(example.input_ids) for example in examples)
    trained = sum(sum(example.completion_mask) for example in examples)
    duplicates, conflicts, truncated, dropped = counts
    return PrepareReport(
        format=rows.format,
        rows=len(rows.conversations) + len(rows.bad_rows),
        bad_rows=rows.bad_rows,
        duplicates=duplicates,
        conflicts=conflicts,
        truncated=truncated,
        dropped_without_answer=dropped,
        tokens=sum(lengths),
        trained_tokens=trained,
        trained_share=round(trained / sum(lengths), 4),
        length_p50=lengths[len(lengths) // 2],
        length_p95=lengths[int(0.95 * (len(lengths) - 1))],
        length_max=lengths[-1],
        sample=_marked(examples[0], tokenizer),
        contamination=contamination,
    )


def _marked(example: Example, tokenizer: Any) -> str:
    """The decoded row with the trained stretches in ⟦ ⟧."""
    text, run = "", []
    for position, (token, trained) in enumerate(zip(example.input_ids, example.completion_mask, strict=True)):
        run.append(token)
        following = example.completion_mask[position + 1 : position + 2]
        if not following or following[0] != trained:
            piece = tokenizer.decode(run, skip_special_tokens=False)
            text += f"⟦{piece}⟧" if trained else piece
            run = []
    return text
