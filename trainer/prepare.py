"""Rows become training examples: deduplicated, split, rendered, cut to length; everything that was done is counted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import UserError
from trainer.contamination import Contamination, check_contamination
from trainer.render import Example, control_token_in, refuse_unfit_tokenizer, render
from trainer.rows import REJECTED, BadRow, Conversation, Rows

__all__ = ["Example", "PrepareReport", "Prepared", "prepare"]


@dataclass(frozen=True)
class PrepareReport:
    """What was done to the data. Tokens are counted after cutting, held-out rows included; shares are 0 to 1."""

    format: str
    rows: int
    train_rows: int
    held_out_rows: int
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


@dataclass(frozen=True)
class _Row:
    line: int
    conversation: Conversation
    whole: Example
    cut: Example


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
    refuse_unfit_tokenizer(tokenizer, rows.format)
    kept = _without_duplicates(rows)
    contamination = check_contamination(questions, kept) if questions else None
    forged = _with_control_tokens(kept, tokenizer)
    rendered = [_rendered(rows.path, line, kept[line], tokenizer, max_length_tokens) for line in kept.keys() - forged]
    rendered.sort(key=lambda row: row.line)
    usable = [row for row in rendered if row.cut.is_trained]
    _refuse_nothing_trained(rows.path, rendered, usable, forged, max_length_tokens)
    held_out = _held_out_questions([_question(row.conversation) for row in usable], held_out_share, seed)
    train = [row for row in usable if _question(row.conversation) not in held_out]
    if not train:
        raise UserError(
            f"data.held_out_share = {held_out_share} leaves no row of {rows.path} to train on: all of its rows "
            "ask one question. Set it to 0, or add rows."
        )
    report = PrepareReport(
        format=rows.format,
        rows=len(rows.conversations) + len(rows.bad_rows),
        train_rows=len(train),
        held_out_rows=len(usable) - len(train),
        bad_rows=sorted([*rows.bad_rows, *forged.values()], key=lambda bad: bad.line),
        duplicates=len(rows.conversations) - len(kept),
        conflicts=_conflicts(kept),
        truncated=sum(max(row.whole.sequences) > max_length_tokens for row in rendered),
        dropped_without_answer=len(rendered) - len(usable),
        sample=_marked(train[0].cut, tokenizer),
        contamination=contamination,
        **_token_figures([row.cut for row in usable]),
    )
    return Prepared(
        train=[row.cut for row in train],
        held_out=[row.cut for row in usable if _question(row.conversation) in held_out],
        prompts=[(row.conversation[0][1], row.conversation[1][1]) for row in train if len(row.conversation) == 2],
        report=report,
    )


def _without_duplicates(rows: Rows) -> dict[int, Conversation]:
    """The first of each set of equal rows, by line."""
    first: dict[Conversation, int] = {}
    for conversation, line in zip(rows.conversations, rows.lines, strict=True):
        first.setdefault(conversation, line)
    return {line: conversation for conversation, line in first.items()}


def _with_control_tokens(kept: dict[int, Conversation], tokenizer: Any) -> dict[int, BadRow]:
    found = ((line, control_token_in(conversation, tokenizer)) for line, conversation in kept.items())
    return {line: BadRow(line, f"holds {token!r}, a control token of this model") for line, token in found if token}


def _rendered(path: Path, line: int, conversation: Conversation, tokenizer: Any, length: int) -> _Row:
    try:
        whole = render(conversation, tokenizer)
    except UserError as error:
        raise UserError(f"{path}, line {line}: {error}") from None
    return _Row(line, conversation, whole, whole.cut(length))


def _refuse_nothing_trained(
    path: Path, rendered: list[_Row], usable: list[_Row], forged: dict[int, BadRow], length: int
) -> None:
    if usable:
        return
    if not rendered:
        bad = next(iter(forged.values()))
        raise UserError(f"No row of {path} is left to train on; line {bad.line} {bad.reason}. Remove it from the text.")
    shortest = min(row.whole.prompt_tokens for row in rendered)
    where = "the answers of every row begin to differ" if rendered[0].whole.rejected_ids else "every answer lies"
    raise UserError(
        f"Not one token of {path} would be trained (0%): {where} behind model.max_length_tokens = {length}. "
        f"The first answer begins at token {shortest + 1}: raise the limit well above that, or shorten the questions."
    )


def _question(conversation: Conversation) -> str:
    return next((content for role, content in conversation if role == "user"), conversation[0][1])


def _held_out_questions(questions: list[str], share: float, seed: int) -> set[str]:
    """The same for the same questions in any order; a whole question is held out, so that no two answers to it, nor
    two ways of a chat that begins alike, stand on both sides. At least one where a share above 0 is asked for."""
    distinct = sorted(set(questions), key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode()).digest())
    return set(distinct[: max(1, round(share * len(distinct)))] if share else ())


def _conflicts(kept: dict[int, Conversation]) -> list[tuple[int, int]]:
    """Lines of rows that give different answers to one question, or prefer them the other way round; the first answer's
    line comes first.
    """
    first: dict[Conversation, int] = {}
    chats = ((line, _judged(chat)) for line, chat in kept.items() if len(chat) > 1)
    return [(first[judged], line) for line, judged in chats if first.setdefault(judged, line) != line]


def _judged(chat: Conversation) -> Conversation:
    """What should occur once: the question, or the question with both of its answers in whatever order."""
    return (*chat[:-2], *sorted((("", chat[-2][1]), ("", chat[-1][1])))) if chat[-1][0] == REJECTED else chat[:-1]


def _token_figures(examples: list[Example]) -> dict[str, Any]:
    lengths = sorted(max(example.sequences) for example in examples)
    tokens = sum(sum(example.sequences) for example in examples)
    trained = sum(sum(example.completion_mask) + len(example.rejected_ids) for example in examples)
    return {
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": round(trained / tokens, 4),
        "length_p50": lengths[(len(lengths) - 1) // 2],
        "length_p95": lengths[int(0.95 * (len(lengths) - 1))],
        "length_max": lengths[-1],
    }


def _marked(example: Example, tokenizer: Any) -> str:
    """The decoded row with the trained stretches in ⟦ ⟧, behind which a rejected answer follows."""
    text, start = "", 0
    for end in range(1, len(example.input_ids) + 1):
        trained = example.completion_mask[start]
        if end == len(example.input_ids) or example.completion_mask[end] != trained:
            piece = tokenizer.decode(example.input_ids[start:end], skip_special_tokens=False)
            text += f"⟦{piece}⟧" if trained else piece
            start = end
    rejected = tokenizer.decode(example.rejected_ids, skip_special_tokens=False)
    return f"{text} rather than ⟦{rejected}⟧" if rejected else text
