"""Turns a data file into conversations, or says exactly which lines it cannot use and why."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import UserError

Conversation = tuple[tuple[str, str], ...]  # (role, content) turns; the single role "text" is a plain document
MAX_LINE_BYTES = 16 << 20
SHOWN_BAD_ROWS = 10
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class BadRow:
    """A row that was left out; `line` counts from 1."""

    line: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """A data file, read. `lines[i]` is where `conversations[i]` stands."""

    path: Path
    format: str
    conversations: list[Conversation]
    lines: list[int]
    sha256: str
    bad_rows: list[BadRow]


class _RowError(ValueError):
    """Why one row cannot be used."""


def read_rows(path: Path, *, max_bad_share: float) -> Rows:
    """Read JSONL (also .gz), JSON, CSV or Parquet. Needs no tokenizer, so it fails before anything is loaded.

    Raises UserError for a missing, empty or undecodable file, for mixed formats, and when more than `max_bad_share` of
    the rows are bad.
    """
    data = _bytes(path)
    numbered = list(_records(path, data))
    if not numbered:
        raise UserError(f"{path} is empty. It needs one row per line, such as {_EXAMPLE}")
    name = _format(path, numbered)
    conversations, lines, bad = _convert(numbered, FORMATS[name][1])
    _refuse_many_bad(path, name, len(numbered), bad, max_bad_share)
    return Rows(path, name, conversations, lines, hashlib.sha256(data).hexdigest(), bad)


_EXAMPLE = '{"question": "…", "answer": "…"}'


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise UserError(f"There is no data file at {path}. Name one with DATA=my.jsonl: one {_EXAMPLE} a line.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name the file in it.")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path} is a damaged or cut-off gzip file. Compress or copy it again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _records(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    """Line number and parsed row; a _RowError instance stands for a row that cannot be parsed."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        yield from _parquet(path, data)
        return
    text = _decode(path, data)
    if suffix == ".csv":
        yield from _csv(text)
    elif suffix == ".json" and text.lstrip().startswith("["):
        yield from _json_list(path, text)
    else:
        yield from _jsonl(text)


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}. "
            f"Convert it, for example: iconv -f GB18030 -t UTF-8 {path} > new.jsonl"
        ) from None


def _jsonl(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: str) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return _RowError(f"the line has {len(line)} characters, more than {MAX_LINE_BYTES}")
    try:
        return json.loads(line, object_pairs_hook=_no_duplicates)
    except _RowError as error:
        return error
    except (ValueError, RecursionError) as error:
        return _RowError(f"not JSON: {error}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = Counter(key for key, _ in pairs)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise _RowError(f"the key {twice[0]!r} occurs twice")
    return dict(pairs)


def _json_list(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. For one object a line, name it .jsonl.") from None
    yield from enumerate(rows, 1)


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            broken = None in row or None in row.values()
            yield reader.line_num, _RowError("not as many cells as the header names") if broken else row
    except csv.Error as error:
        yield reader.line_num, _RowError(f"not CSV: {error}")


def _parquet(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}.") from None
    yield from enumerate(table.to_pylist(), 1)


# ------------------------------------------------------------------------------------------------------- formats


def _pair(question: str, answer: str) -> Callable[[dict[str, Any]], Conversation]:
    def convert(row: dict[str, Any]) -> Conversation:
        return (("user", _text(row, question)), ("assistant", _text(row, answer)))

    return convert


def _alpaca(row: dict[str, Any]) -> Conversation:
    extra = row.get("input") or ""
    instruction = _text(row, "instruction")
    user = f"{instruction}\n\n{_text(row, 'input')}" if extra else instruction
    return (("user", user), ("assistant", _text(row, "output")))


def _document(row: dict[str, Any]) -> Conversation:
    return (("text", _text(row, "text")),)


def _messages(row: dict[str, Any]) -> Conversation:
    return _turns(row, "messages", "role", "content", {})


def _sharegpt(row: dict[str, Any]) -> Conversation:
    return _turns(row, "conversations", "from", "value", SHAREGPT_ROLES)


def _turns(row: dict[str, Any], key: str, role_key: str, text_key: str, roles: dict[str, str]) -> Conversation:
    turns = row[key]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise _RowError(f"{key!r} is not a list of turns")
    made = []
    for turn in turns:
        role = str(turn.get(role_key))
        role = roles.get(role, role)
        if role not in ("system", "user", "assistant", "tool"):
            raise _RowError(f"unknown role {role!r}")
        made.append((role, _text(turn, text_key)))
    _refuse_unbalanced([role for role, _ in made])
    return tuple(made)


def _refuse_unbalanced(roles: list[str]) -> None:
    if "system" in roles[1:]:
        raise _RowError("a system turn that is not the first")
    spoken = [role for role in roles if role != "system"]
    if not spoken or spoken[0] != "user":
        raise _RowError("the first turn is not the user's")
    if spoken[-1] != "assistant":
        raise _RowError("the last turn is not the assistant's, so there is nothing to learn at its end")
    if any(a == b for a, b in itertools.pairwise(spoken) if a != "tool"):
        raise _RowError("two turns of one role in a row")


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise _RowError(f"no {key!r}")
    if not isinstance(value, str):
        raise _RowError(f"{key!r} is not text but {type(value).__name__}")
    if not value.strip():
        raise _RowError(f"{key!r} is empty")
    if "\0" in value:
        raise _RowError(f"{key!r} holds a null byte")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _RowError(f"{key!r} holds half of a surrogate pair")
    return value.strip()


# name -> (the key that gives it away, converter), asked in this order
FORMATS: dict[str, tuple[str, Callable[[dict[str, Any]], Conversation]]] = {
    "messages": ("messages", _messages),
    "ShareGPT": ("conversations", _sharegpt),
    "question/answer": ("question", _pair("question", "answer")),
    "instruction/input/output": ("instruction", _alpaca),
    "prompt/completion": ("prompt", _pair("prompt", "completion")),
    "text": ("text", _document),
}


def _format(path: Path, numbered: list[tuple[int, Any]]) -> str:
    """The format that the rows agree on; the first object decides, a second format among the rows is an error."""
    seen: dict[str, int] = {}
    for line, row in numbered:
        name = _format_of(row)
        if name:
            seen.setdefault(name, line)
    if not seen:
        known = "; ".join(FORMATS)
        raise UserError(f"{path} has no row of a known format ({known}). A row may look like {_EXAMPLE}")
    if len(seen) > 1:
        places = " and ".join(f"{name} (line {line})" for name, line in seen.items())
        raise UserError(f"{path} mixes formats: {places}. Make two files, or bring the rows into one format.")
    return next(iter(seen))


def _format_of(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    return next((name for name, (key, _) in FORMATS.items() if key in row), None)


def _convert(
    numbered: list[tuple[int, Any]], convert: Callable[[dict[str, Any]], Conversation]
) -> tuple[list[Conversation], list[int], list[BadRow]]:
    conversations, lines, bad = [], [], []
    for line, row in numbered:
        try:
            if isinstance(row, _RowError):
                raise row
            if not isinstance(row, dict):
                raise _RowError(f"not an object but {type(row).__name__}")
            if _format_of(row) is None:
                raise _RowError(f"none of the expected keys, only {sorted(map(str, row))[:5]}")
            conversations.append(convert(row))
            lines.append(line)
        except _RowError as error:
            bad.append(BadRow(line, str(error)))
    return conversations, lines, bad


def _refuse_many_bad(path: Path, name: str, total: int, bad: list[BadRow], max_bad_share: float) -> None:
    if len(bad) < total and len(bad) <= max_bad_share * total:
        return
    shown = "\n".join(f"  line {row.line}: {row.reason}" for row in bad[:SHOWN_BAD_ROWS])
    more = f"\n  … and {len(bad) - SHOWN_BAD_ROWS} more" if len(bad) > SHOWN_BAD_ROWS else ""
    raise UserError(
        f"{path} (format {name}): {len(bad)} of {total} rows cannot be used, and the limit is "
        f"{max_bad_share:.0%}:\n{shown}{more}\nMend them, or raise data.max_bad_rows_share to leave them out."
    )
