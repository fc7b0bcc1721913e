"""Turns the records of a data file into conversations, or says exactly which rows it cannot use and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import UserError
from trainer.datafile import EXAMPLE_ROW, Record, RowError, read_bytes, records

if TYPE_CHECKING:
    from trainer.config import TrainConfig

# (role, content) turns. The single role "text" is a plain document; a last role "rejected", behind the assistant's
# answer, is the answer that it was preferred to.
Conversation = tuple[tuple[str, str], ...]
REJECTED = "rejected"
PREFERENCES = "prompt/chosen/rejected"
EXAMPLE_PAIR = '{"prompt": "…", "chosen": "…", "rejected": "…"}'
SHOWN_BAD_ROWS = 10
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
FOLLOWS = {  # which roles may follow which; None is the start, and a conversation ends with the assistant
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True)
class BadRow:
    """A row that was left out; `line` counts from 1 and is where the row starts (in Parquet the row's number)."""

    line: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """A data file, read. `lines[i]` is where `conversations[i]` stands; `sha256` is that of the file on the disk."""

    path: Path
    format: str
    conversations: list[Conversation]
    lines: list[int]
    sha256: str
    bad_rows: list[BadRow]


def read_rows(path: Path, *, max_bad_share: float, preferences: bool = False) -> Rows:
    """Read JSONL (also .gz), JSON, CSV or Parquet. Needs no tokenizer, so it fails before anything is loaded.

    `preferences`: whether rows of a chosen and a rejected answer are wanted; the other kind is a UserError. Raises it
    also for a missing, empty or undecodable file, for mixed formats, and when more than `max_bad_share` of the rows are
    bad. There is no least number of bad rows that pass: in a short file each is soon mended, and missed.
    """
    data = read_bytes(path)
    found = list(records(path, data))
    if not found:
        raise UserError(f"{path} has no rows. It needs one row a line, such as {EXAMPLE_ROW}")
    name = _format(path, found)
    _refuse_other_kind(path, name, preferences)
    conversations, lines, bad = _convert(found, *FORMATS[name])
    _refuse_many_bad(path, name, len(found), bad, max_bad_share)
    return Rows(path, name, conversations, lines, hashlib.sha256(data).hexdigest(), bad)


def rows_of(config: TrainConfig) -> Rows:
    """The rows that a training names, of the kind that its method learns from."""
    limit, preferences = config.data.max_bad_rows_share, config.training.method == "dpo"
    return read_rows(config.data.path, max_bad_share=limit, preferences=preferences)


# ------------------------------------------------------------------------------------------------------- one row

Converter = Callable[[dict[str, Any]], Conversation]


def _pair(question: str, answer: str) -> Converter:
    def convert(row: dict[str, Any]) -> Conversation:
        return (("user", _text(row, question).strip()), ("assistant", _text(row, answer).strip()))

    return convert


def _alpaca(row: dict[str, Any]) -> Conversation:
    user = _text(row, "instruction").strip()
    context = row.get("input")
    if context is not None and context != "" and not (isinstance(context, str) and context.isspace()):
        user = f"{user}\n\n{_text(row, 'input').strip()}"
    return (("user", user), ("assistant", _text(row, "output").strip()))


def _document(row: dict[str, Any]) -> Conversation:
    return (("text", _text(row, "text")),)


def _messages(row: dict[str, Any]) -> Conversation:
    return _turns(row, "messages", "role", "content", {})


def _sharegpt(row: dict[str, Any]) -> Conversation:
    return _turns(row, "conversations", "from", "value", SHAREGPT_ROLES)


def _preference(row: dict[str, Any]) -> Conversation:
    """The turns before the two answers may stand in a key of their own, or before the answer in both lists."""
    chosen, rejected = _answered(row, "chosen"), _answered(row, REJECTED)
    if chosen[:-1] != rejected[:-1]:
        raise RowError("'chosen' and 'rejected' differ before their last turn, so they do not answer the same")
    if chosen[-1] == rejected[-1]:
        raise RowError("'chosen' and 'rejected' are the same answer")
    asked = _asked(row)
    if not asked and not chosen[:-1]:
        raise RowError("no 'prompt', 'question' or 'messages', and 'chosen' holds an answer only")
    if asked and chosen[:-1] and chosen[:-1][-len(asked) :] != asked:
        raise RowError("'chosen' does not begin with the turns that the row asks with")
    turns = (*(chosen[:-1] or asked), chosen[-1])
    _refuse_unbalanced([role for role, _ in turns])
    return (*turns, (REJECTED, rejected[-1][1]))


def _asked(row: dict[str, Any]) -> Conversation:
    for key in ("prompt", "question", "messages"):
        if isinstance(row.get(key), list):
            return _list_of_turns(row, key, "role", "content", {})
        if key in row:
            system = (("system", _text(row, "system").strip()),) if row.get("system") else ()
            return (*system, ("user", _text(row, key).strip()))
    return ()


def _answered(row: dict[str, Any], key: str) -> Conversation:
    """A text is the answer alone; a turn or a list of turns ends with it."""
    turns = [row[key]] if isinstance(row.get(key), dict) else row.get(key)
    if not isinstance(turns, list):
        return (("assistant", _text(row, key).strip()),)
    try:
        answered = _list_of_turns({key: turns}, key, "role", "content", {})
    except RowError as error:
        raise RowError(f"{key!r}: {error}") from None
    if answered[-1][0] != "assistant":
        raise RowError(f"{key!r}: the last turn is {answered[-1][0]}, not assistant")
    return answered


def _turns(row: dict[str, Any], key: str, role_key: str, text_key: str, roles: dict[str, str]) -> Conversation:
    made = _list_of_turns(row, key, role_key, text_key, roles)
    _refuse_unbalanced([role for role, _ in made])
    return made


def _list_of_turns(row: dict[str, Any], key: str, role_key: str, text_key: str, roles: dict[str, str]) -> Conversation:
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{key!r} is not a list of turns" if turns else f"{key!r} is empty")
    if row.get("tools"):
        raise RowError("'tools' defines functions, which are not rendered and would be lost")
    made = []
    for number, turn in enumerate(turns, 1):
        try:
            made.append(_turn(turn, role_key, text_key, roles))
        except RowError as error:
            raise RowError(f"turn {number}: {error}") from None
    return tuple(made)


def _turn(turn: Any, role_key: str, text_key: str, roles: dict[str, str]) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise RowError(f"not an object but {type(turn).__name__}")
    written = _text(turn, role_key)
    role = roles.get(written, written)
    if role not in FOLLOWS:
        raise RowError(f"unknown role {role!r}")
    if turn.get("tool_calls"):
        raise RowError("'tool_calls' are not rendered and would be lost")
    return role, _text(turn, text_key).strip()


def _refuse_unbalanced(roles: list[str]) -> None:
    before: str | None = None
    for number, role in enumerate(roles, 1):
        if role not in FOLLOWS[before]:
            place = f"after {before}" if before else "at the start"
            raise RowError(f"turn {number}: {role} {place}, where only {' or '.join(FOLLOWS[before])} can stand")
        before = role
    if before != "assistant":
        raise RowError(f"the last turn is {before}, not assistant, so there is nothing to learn at its end")


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise RowError(f"no {key!r}")
    if not isinstance(value, str):
        raise RowError(f"{key!r} is not text but {type(value).__name__}")
    if not value.strip():
        raise RowError(f"{key!r} is empty")
    if "\0" in value:
        raise RowError(f"{key!r} holds a null byte")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{key!r} holds half of a surrogate pair")
    return value


# ----------------------------------------------------------------------------------------------------- all rows

# name -> (the key that gives it away, converter), asked in this order: Alpaca files often carry a rendered `text` too
FORMATS: dict[str, tuple[str, Converter]] = {
    PREFERENCES: ("chosen", _preference),
    "messages": ("messages", _messages),
    "ShareGPT": ("conversations", _sharegpt),
    "question/answer": ("question", _pair("question", "answer")),
    "instruction/input/output": ("instruction", _alpaca),
    "prompt/completion": ("prompt", _pair("prompt", "completion")),
    "text": ("text", _document),
}


def _format(path: Path, found: list[Record]) -> str:
    """The format that the rows agree on; rows that show none are judged later, by that format."""
    seen: dict[str, int] = {}
    for line, row in found:
        for name in [name for name, (key, _) in FORMATS.items() if isinstance(row, dict) and key in row][:1]:
            seen.setdefault(name, line)
    if not seen:
        keys = "; ".join(f"{name} (key {key!r})" for name, (key, _) in FORMATS.items())
        line, row = found[0]
        raise UserError(
            f"{path} has no row of a known format: {keys}. Its first row, line {line}: {_described(row)}. "
            f"A row may look like {EXAMPLE_ROW}"
        )
    if len(seen) > 1:
        places = " and ".join(f"{name} (line {line})" for name, line in seen.items())
        raise UserError(f"{path} mixes formats: {places}. Make two files, or bring the rows into one format.")
    return next(iter(seen))


def _refuse_other_kind(path: Path, name: str, preferences: bool) -> None:
    if preferences and name != PREFERENCES:
        raise UserError(
            f'{path} has the format {name}, and training.method = "dpo" compares two answers: name a file of rows such '
            f'as {EXAMPLE_PAIR}, or set method = "lora".'
        )
    if not preferences and name == PREFERENCES:
        raise UserError(
            f'{path} has rejected answers, which only training.method = "dpo" learns from: set that, or name a file of '
            f"rows such as {EXAMPLE_ROW}"
        )


def _described(row: Any) -> str:
    if isinstance(row, RowError):
        return str(row)
    return f"the keys {list(row)[:8]}" if isinstance(row, dict) else f"not an object but {type(row).__name__}"


def _convert(found: list[Record], key: str, convert: Converter) -> tuple[list[Conversation], list[int], list[BadRow]]:
    conversations, lines, bad = [], [], []
    for line, row in found:
        try:
            if not isinstance(row, dict):
                raise RowError(_described(row))
            if key not in row:
                raise RowError(f"no {key!r}, only {_described(row)}")
            conversations.append(convert(row))
            lines.append(line)
        except RowError as error:
            bad.append(BadRow(line, str(error)))
    return conversations, lines, bad


def _refuse_many_bad(path: Path, name: str, total: int, bad: list[BadRow], max_bad_share: float) -> None:
    if len(bad) < total and len(bad) <= max_bad_share * total:
        return
    shown = "\n".join(f"  line {row.line}: {row.reason}" for row in bad[:SHOWN_BAD_ROWS])
    more = f"\n  … and {len(bad) - SHOWN_BAD_ROWS} more" if len(bad) > SHOWN_BAD_ROWS else ""
    advice = ", or raise data.max_bad_rows_share to leave them out" if len(bad) < total else ""
    raise UserError(
        f"{path} (format {name}): {len(bad)} of {total} rows cannot be used, and at most {max_bad_share:.3g} of them "
        f"may be left out:\n{shown}{more}\nMend them{advice}."
    )
