"""Reads a data file into numbered records: JSONL (also .gz), a JSON list, CSV or Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelstore import UserError

EXAMPLE_ROW = '{"question": "…", "answer": "…"}'
MAX_ROW_CHARACTERS = 16 << 20
JSON_LIST = re.compile(r"\s*\[\s*[{\]]")
JSON_SPACE = re.compile(r"[ \t\n\r]*")

Record = tuple[int, Any]  # the line on which a row starts (in Parquet the row's number), and the parsed row


class RowError(ValueError):
    """Why one row cannot be used. Stands in a Record for a row that cannot be parsed."""


def read_bytes(path: Path) -> bytes:
    """The file as it lies on the disk. Raises UserError when there is none, or nothing in it."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder. Name the data file in it.")
        data = path.read_bytes()
    except FileNotFoundError:
        message = f"There is no data file at {path}. Name one with DATA=my.jsonl: one {EXAMPLE_ROW} a line."
        raise UserError(message) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check its permissions and the path.") from None
    if not data:
        raise UserError(f"{path} is empty. It needs one row a line, such as {EXAMPLE_ROW}")
    return data


def records(path: Path, data: bytes) -> Iterator[Record]:
    """Parse `data`, the bytes of `path`; the file's name decides how, except that a JSON list may have any name.

    A row that cannot be parsed becomes a RowError. Raises UserError where the rest of the file cannot be told either.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        data, suffix = _unpacked(path, data), Path(path.stem).suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, data)
    text = _decoded(path, data)
    if suffix in (".csv", ".tsv"):
        return _csv(path, text)
    return _json_list(path, text) if JSON_LIST.match(text) else _jsonl(path, text)


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path} is a damaged or cut-off gzip file. Compress or copy it again.") from None


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16 (byte 0), not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}. Convert it from the "
            "encoding it was written in, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW (Chinese: -f GB18030)"
        ) from None


class _RowParser:
    """JSON, except that an object which holds a key twice is a RowError; plain JSON would drop one silently."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            self._repeated.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return made

    def element(self, text: str, start: int) -> tuple[Any, int]:
        """The value that starts at `start`, and where it ends. Raises ValueError or RecursionError."""
        self._repeated.clear()
        value, end = self._decoder.raw_decode(text, start)
        return (RowError(f"the key {self._repeated[0]!r} occurs twice") if self._repeated else value), end

    def line(self, text: str) -> Any:
        """The value of a whole line, or a RowError."""
        if len(text) > MAX_ROW_CHARACTERS:
            return RowError(f"the line has {len(text)} characters, more than {MAX_ROW_CHARACTERS}")
        text = text.strip(" \t\r")
        try:
            value, end = self.element(text, 0)
        except (ValueError, RecursionError) as error:
            return RowError(f"not JSON: {error}")
        return value if end == len(text) else RowError(f"not JSON: more text after the object, at character {end + 1}")


def _jsonl(path: Path, text: str) -> Iterator[Record]:
    if (keys := _keys_of_one_object(text)) is not None:
        raise UserError(
            f"{path} is one JSON object with the keys {keys}, not a list of rows. Keep the list only, or write one "
            f"row a line, such as {EXAMPLE_ROW}"
        )
    parser = _RowParser()
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a JSON string
        if line.strip():
            yield number, parser.line(line)


def _keys_of_one_object(text: str) -> list[str] | None:
    """The keys of an object written over several lines, when that is all the text holds."""
    first = text.lstrip().partition("\n")[0].strip()
    if not first.startswith("{") or first.endswith("}"):
        return None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return list(whole)[:8]


def _json_list(path: Path, text: str) -> Iterator[Record]:
    parser, line, counted = _RowParser(), 1, 0
    position = _after_space(text, text.index("[") + 1)
    try:
        while text[position : position + 1] != "]":
            row, end = parser.element(text, position)
            line += text.count("\n", counted, position)
            counted = position
            yield line, row
            position = _after_space(text, end)
            if text[position : position + 1] == ",":
                position = _after_space(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        if _after_space(text, position + 1) < len(text):
            raise json.JSONDecodeError("Extra data after the list", text, position + 1)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON list: {error}. Mend it, or write one object a line (.jsonl).") from None


def _after_space(text: str, position: int) -> int:
    found = JSON_SPACE.match(text, position)
    return found.end() if found else position


def _csv(path: Path, text: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)  # spreadsheets write any of the three
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}: the CSV row that starts on line {start} cannot be read: {error}. Close its quotes; a quote "
                "inside a cell is written twice."
            ) from None
        if not names:
            names = _header(path, cells)
        elif len(cells) == len(names):
            yield start, dict(zip(names, cells, strict=True))
        elif cells:
            yield start, RowError(f"{len(cells)} cells, and the header names {len(names)}")


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: two columns are called {twice[0]!r}. Rename or remove one.")
    return names


def _parquet(path: Path, data: bytes) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        names = _header(path, table.column_names)
        columns = [table.column(name).to_pylist() for name in names]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}. Write it again, or convert it to JSONL.") from None
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        yield number, dict(zip(names, cells, strict=True))
