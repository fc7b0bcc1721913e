"""A line of 200 MB ends with one message that names file and line, and takes no more memory than stated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZE = 200_000_000
READ = """
import re, sys
from pathlib import Path
from modelstore import UserError
from trainer.rows import read_rows
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
before = peak()
try:
    read_rows(Path(sys.argv[1]), max_bad_share=0)
except UserError as error:
    print(peak() - before, error)
"""


def refused(path: Path) -> tuple[int, str]:
    """How far the memory of the reader grew, in bytes, and what it said; in a process of its own."""
    done = subprocess.run([sys.executable, "-c", READ, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, _, message = done.stdout.partition(" ")
    return int(grown), message


@pytest.mark.parametrize(
    ("name", "before", "after", "said", "times"),
    [
        ("one.jsonl", b'{"question": "', b'", "answer": "x"}\n', "line 1: the line has 200", 4),
        (
            "second.jsonl",
            b'{"question": "a", "answer": "b"}\n{"question": "',
            b'", "answer": "x"}',
            "line 2: the line",
            4,
        ),
        ("cut-off.jsonl", b'{"question": "', b"", "line 1: the line has 200", 4),
        ("a.csv", b"question,answer\na,", b"\n", "starts on line 2 cannot be read: field larger", 9),
    ],
)
def test_a_line_of_200_mb(tmp_path: Path, name: str, before: bytes, after: bytes, said: str, times: int) -> None:
    path = tmp_path / name
    path.write_bytes(before + b"a" * SIZE + after)
    grown, message = refused(path)
    path.unlink()
    print(f"{name}: {grown / SIZE:.1f} times the file")
    assert str(path) in message and said in message
    assert grown < times * SIZE
