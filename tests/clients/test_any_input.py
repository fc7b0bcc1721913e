"""Question sets and evaluation configs: whatever lies in a file, read or refused with a message that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clients.eval_config import EvalConfig, read_config
from clients.questions import KINDS, MAX_BYTES, ROLES, read_questions
from modelstore import UserError
from tests.any_toml import NOISE, ODD, document, exchanged

ROOT = Path(__file__).parents[2]
QUESTION = {
    "id": "a",
    "category": "c",
    "question": "How long?",
    "answer": "3 days",
    "key_points": [["3 days", "num:3 days", "re:(three|3) days"]],
    "forbidden": [],
    "scorer": "key-points",
    "choices": ["x", "y"],
    "tolerance": 0,
}
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["A", "3 days", "\ud800", "re:(", "re:a{99999999999}", "num:x", "re:" + "(" * 2000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES) | VALUES, "content": VALUES}) | VALUES, max_size=3
)
FIELDS = {**dict.fromkeys(QUESTION, VALUES), "scorer": st.sampled_from(KINDS) | VALUES, "messages": TURNS}
ROWS = st.fixed_dictionaries({}, optional=FIELDS).map(lambda changed: QUESTION | changed)
often = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@often
@given(data=NOISE | st.lists(ROWS | VALUES, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()))
@example(data=json.dumps(QUESTION | {"tolerance": 10**400}).encode())
@example(data=json.dumps(QUESTION | {"key_points": [["re:a{99999999999}"]]}).encode())
@example(data=json.dumps(QUESTION | {"question": "\ud800"}).encode())
@example(data=json.dumps(QUESTION).encode())
def test_any_file_is_a_question_set_or_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(data)
    try:
        questions = read_questions(path)
    except UserError as error:
        assert str(path) in str(error)
        str(error).encode()  # can be printed
    else:
        for question in questions:
            json.dumps(question.conversation("Be short."), ensure_ascii=False).encode()


@often
@given(data=NOISE | ODD | exchanged(EvalConfig().model_dump(mode="json")).map(document))
def test_any_file_is_an_evaluation_config_or_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "eval.toml"
    path.write_bytes(data)
    try:
        assert read_config(path, {}).models
    except UserError as error:
        assert str(path) in str(error)
        str(error).encode()


READ = """
import re, sys
from pathlib import Path
from clients.questions import read_questions
from modelstore import UserError
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
before = peak()
try:
    told = f"{len(read_questions(Path(sys.argv[1])))} read"
except UserError as error:
    told = str(error)
print(peak() - before, told)
"""


@pytest.mark.parametrize(
    ("size", "said"), [(200_000_000, "more than 64 MiB"), (50_000_000, "1 read")], ids=["200 MB", "50 MB"]
)
def test_a_line_of_many_megabytes(tmp_path: Path, size: int, said: str) -> None:
    path = tmp_path / "questions.jsonl"
    head, tail = json.dumps(QUESTION).encode().split(b"How long?")
    path.write_bytes(head + "人".encode() * (size // 3) + tail)
    argv = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    grown, _, told = done.stdout.partition(" ")
    print(f"{size >> 20} MiB: {int(grown) / 2**20:.0f} MiB in memory")
    assert said in told
    assert int(grown) < 6 * MAX_BYTES
