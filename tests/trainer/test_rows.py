"""Every format in every container, and every way in which a data file can be wrong."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelstore import UserError
from trainer.rows import BadRow, Rows, read_rows

QA = {"question": "Who?", "answer": "Ada."}
PAIR = (("user", "Who?"), ("assistant", "Ada."))
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, share: float = 0.5) -> Rows:
    return read_rows(path, max_bad_share=share)


def reasons(tmp_path: Path, *bad: object) -> list[BadRow]:
    """The bad rows of a file that holds `bad` behind two good rows for each."""
    return read(written(tmp_path / "rows.jsonl", *[QA] * 2 * len(bad), *bad)).bad_rows


@pytest.mark.parametrize(
    ("row", "name", "conversation"),
    [
        (QA, "question/answer", PAIR),
        ({"question": " Who?\n", "answer": "Ada. ", "source": 3}, "question/answer", PAIR),
        ({"prompt": "Who?", "completion": "Ada."}, "prompt/completion", PAIR),
        ({"instruction": "Who?", "output": "Ada."}, "instruction/input/output", PAIR),
        ({"instruction": "Who?", "input": " ", "output": "Ada.", "text": "x"}, "instruction/input/output", PAIR),
        (
            {"instruction": "Who?", "input": "In 1843.", "output": "Ada."},
            "instruction/input/output",
            (("user", "Who?\n\nIn 1843."), PAIR[1]),
        ),
        ({"messages": CHAT}, "messages", PAIR),
        (
            {"messages": [{"role": "system", "content": "Short."}, *CHAT, *CHAT]},
            "messages",
            (("system", "Short."), *PAIR, *PAIR),
        ),
        ({"messages": [*CHAT, {"role": "tool", "content": "7"}, CHAT[1]]}, "messages", (*PAIR, ("tool", "7"), PAIR[1])),
        (
            {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]},
            "ShareGPT",
            PAIR,
        ),
        ({"text": "  Indented\u2028人"}, "text", (("text", "  Indented\u2028人"),)),
    ],
)
def test_formats(tmp_path: Path, row: object, name: str, conversation: object) -> None:
    rows = read(written(tmp_path / "rows.jsonl", row))
    assert (rows.format, rows.conversations, rows.lines, rows.bad_rows) == (name, [conversation], [1], [])


def test_containers_agree(tmp_path: Path) -> None:
    lines = json.dumps(QA) + "\n\n" + json.dumps({"question": "人?", "answer": "🙂"}, ensure_ascii=False) + "\r\n"
    files = {
        "a.jsonl": lines.encode(),
        "b.jsonl": b"\xef\xbb\xbf" + lines.encode(),
        "c.jsonl.gz": gzip.compress(lines.encode()),
        "d.json": f"[{lines.strip().replace(chr(10) * 2, ',' + chr(10) * 2)}]".encode(),
        "list-in-a.jsonl": f"[\n{lines.strip().replace(chr(10) * 2, ',' + chr(10) * 2)}\n]\n".encode(),
        "e.csv": b'question,answer\r\nWho?,Ada.\r\n\r\n"\xe4\xba\xba?",\xf0\x9f\x99\x82\r\n',
        "semicolons.csv": "\ufeffquestion;answer\nWho?;Ada.\n人?;🙂\n".encode(),
        "f.tsv": "question\tanswer\nWho?\tAda.\n人?\t🙂\n".encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        rows = read(tmp_path / name)
        assert rows.conversations == [PAIR, (("user", "人?"), ("assistant", "🙂"))], name
        assert rows.format == "question/answer"
        assert rows.sha256 == hashlib.sha256(data).hexdigest(), name


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(QA)}\n\n{json.dumps(QA)}\n")
    (tmp_path / "a.json").write_text(f"[\n{json.dumps(QA)},\n\n{json.dumps(QA, indent=1)},\n{json.dumps(QA)}]")
    (tmp_path / "a.csv").write_text('question,answer\n"Who\nis\nit?",Ada.\nWho?,Ada.\n')
    assert read(tmp_path / "a.jsonl").lines == [1, 3]
    assert read(tmp_path / "a.json").lines == [2, 4, 8]
    assert read(tmp_path / "a.csv").lines == [2, 5]


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([QA, {"question": None, "answer": "x"}]), tmp_path / "a.parquet"
    )
    rows = read(tmp_path / "a.parquet")
    assert (rows.conversations, rows.bad_rows) == ([PAIR], [BadRow(2, "no 'question'")])
    chats = pyarrow.Table.from_pylist([{"messages": CHAT}])
    pyarrow.parquet.write_table(chats, tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet").conversations == [PAIR]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Who?"}, "no 'answer'"),
        ({"question": "Who?", "answer": None}, "no 'answer'"),
        ({"question": " ", "answer": "Ada."}, "'question' is empty"),
        ({"question": "Who?", "answer": ""}, "'answer' is empty"),
        ({"question": "Who?", "answer": 42}, "'answer' is not text but int"),
        ({"question": "Wh\0?", "answer": "Ada."}, "'question' holds a null byte"),
        ({"answer": "Ada."}, "no 'question', only the keys ['answer']"),
        ({}, "no 'question', only the keys []"),
        (["Who?", "Ada."], "not an object but list"),
        (None, "not an object but NoneType"),
    ],
)
def test_bad_rows(tmp_path: Path, row: object, reason: str) -> None:
    assert reasons(tmp_path, row) == [BadRow(3, reason)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "Who?", "answer": "a", "answer": "b"}', "the key 'answer' occurs twice"),
        ('{"question": "Who?", "answer"', "not JSON"),
        ('{"question": "Who?", "answer": "a"} {}', "more text after the object"),
        ('{"question": "Who?", "answer": "\\ud83d"}', "half of a surrogate pair"),
        ("[" * 200_000, "not JSON"),
        ('{"question": "Who?", "answer": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(QA)}\n{line}\n{json.dumps(QA)}\n")
    (bad,) = read(tmp_path / "a.jsonl").bad_rows
    assert bad.line == 2
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "'messages' is empty"),
        ("Who?", "'messages' is not a list of turns"),
        (["Who?"], "turn 1: not an object but str"),
        ([{"content": "Who?"}], "turn 1: no 'role'"),
        ([{"role": "robot", "content": "Who?"}], "turn 1: unknown role 'robot'"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "turn 2: 'content' is empty"),
        ([CHAT[1]], "turn 1: assistant at the start, where only system or user can stand"),
        ([CHAT[0], CHAT[0], CHAT[1]], "turn 2: user after user, where only assistant can stand"),
        ([*CHAT, CHAT[1]], "turn 3: assistant after assistant, where only user or tool can stand"),
        (
            [*CHAT, {"role": "system", "content": "x"}],
            "turn 3: system after assistant, where only user or tool can stand",
        ),
        ([*CHAT, CHAT[0]], "the last turn is user, not assistant, so there is nothing to learn at its end"),
        ([CHAT[0], {**CHAT[1], "tool_calls": [{}]}], "turn 2: 'tool_calls' are not rendered and would be lost"),
    ],
)
def test_bad_conversations(tmp_path: Path, turns: object, reason: str) -> None:
    good = {"messages": CHAT}
    assert read(written(tmp_path / "rows.jsonl", good, {"messages": turns})).bad_rows == [BadRow(2, reason)]


def test_function_definitions_are_not_dropped_silently(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"messages": CHAT}, {"messages": CHAT, "tools": [{"name": "f"}]})
    assert "'tools'" in read(path).bad_rows[0].reason


def test_the_threshold(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", *[QA] * 297, *[{"question": "Who?"}] * 3)
    assert len(read(path, 0.01).bad_rows) == 3
    with pytest.raises(UserError, match=r"3 of 300 rows cannot be used, and at most 0\.0099 of them"):
        read(path, 0.0099)
    with pytest.raises(UserError, match="line 298: no 'answer'"):
        read(path, 0)


def test_many_bad_rows_show_the_first_ten(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(written(tmp_path / "a.jsonl", *[{"question": "Who?"}] * 30), 0.01)
    message = str(caught.value)
    assert (message.count("no 'answer'"), "and 20 more" in message, "max_bad_rows_share" in message) == (
        10,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.jsonl", b'{"question": "a"}\n\xef\xbb\xbf{"q": "\xff"}', r"byte 28 \(line 2\) is 0xff"),
        ("a.jsonl", b'\xef\xbb\xbf{"q": "\xff"}', "byte 10 "),
        ("a.jsonl", '{"question": "谁", "answer": "我"}'.encode("gb18030"), "iconv .*GB18030"),
        ("a.jsonl", '{"question": "a", "answer": "b"}'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"q": "a", "a": "b"}\n', r"line 1: the keys \['q', 'a'\]"),
        (
            "a.jsonl",
            b'{"question": "a", "answer": "b"}\n{"text": "c"}\n',
            r"question/answer \(line 1\) and text \(line 2\)",
        ),
        ("a.json", b'{\n"data": [1],\n"v": 2\n}', r"one JSON object with the keys \['data', 'v'\]"),
        ("a.json", b'[{"question": "a", "answer": "b"}, oops]', "line 1 column 36"),
        ("a.json", b'[{"question": "a", "answer": "b"} {}]', "Expecting ',' or ']'"),
        ("a.json", b'[{"question": "a", "answer": "b"}', "not a JSON list"),
        ("a.json", b'[{"question": "a", "answer": "b"}] x', "Extra data"),
        ("a.csv", b'question,answer\na,b\n"c,d\ne,f\n', "row that starts on line 3 cannot be read"),
        ("a.csv", b"question,answer,answer\na,b,c\n", "two columns are called 'answer'"),
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00", "gzip"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999)[:-9], "gzip"),
        ("a.jsonl.gz", b"{}", "gzip"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no data file at"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read(tmp_path / ("x" * 300))
    written(tmp_path / "a.jsonl", QA)
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        read(tmp_path / "a.jsonl" / "b.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", QA)
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read(path)


def test_csv_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"Who, then?","She said ""Ada"".\nTwice."\nWho?\nWho?,Ada.,more\n')
    rows = read(path, 0.9)
    assert rows.conversations == [(("user", "Who, then?"), ("assistant", 'She said "Ada".\nTwice.'))]
    assert [bad.line for bad in rows.bad_rows] == [4, 5]
    assert rows.bad_rows[0].reason == "1 cells, and the header names 2"


def test_a_csv_cell_longer_than_the_parsers_default(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nWho?," + "a" * 200_000 + "\n")
    assert len(read(tmp_path / "a.csv").conversations[0][1][1]) == 200_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["question", "answer", "messages", "role", "content", "from", "value", "text", "conversations"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": VALUES})
ROW = VALUES | st.fixed_dictionaries({"messages": st.lists(TURN | VALUES, max_size=5)})
SOMETIMES_SLOW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read_or_refuse(path: Path) -> None:
    try:
        rows = read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(rows.conversations) == len(rows.lines) > 0
        for conversation in rows.conversations:
            assert conversation[-1][0] in ("assistant", "text")
            assert all(content.strip() for _, content in conversation)


@SOMETIMES_SLOW
@given(rows=st.lists(ROW, max_size=6), is_list=st.booleans())
def test_any_json_is_read_or_refused(tmp_path: Path, rows: list[object], is_list: bool) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(rows) if is_list else "\n".join(map(json.dumps, rows)))
    read_or_refuse(path)


@SOMETIMES_SLOW
@given(
    data=st.binary(max_size=200)
    | st.text(alphabet='{}[]":,\n\r\t;\\ aquestionr\0"\ufeff', max_size=120).map(str.encode),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz", "a"]),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    read_or_refuse(tmp_path / name)


@SOMETIMES_SLOW
@given(cut=st.integers(0, 700), flip=st.integers(0, 700))
def test_a_damaged_parquet_file_is_read_or_refused(tmp_path: Path, cut: int, flip: int) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QA]), path)
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 0x40
    path.write_bytes(bytes(data[: len(data) - cut % 3]))
    read_or_refuse(path)
