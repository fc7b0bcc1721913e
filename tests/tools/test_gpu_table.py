"""The GPU table's order of work, with programs that end at once in the place of benchmarks."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu_table import Table, Task, tasks
from tests.gpu import run

SAY = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


def task(name: str, *after: str, code: str = SAY, cards: int = 1, makes: str = "") -> Task:
    return Task(name, 1, ["-c", code], after, env="clients", cards=cards, makes=makes)


@pytest.fixture(autouse=True)
def _logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()


def test_everything_is_done_in_an_order_that_its_needs_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [task("late", "early"), task("early"), task("both", "late", cards=2), task("free")]
    assert Table(wanted, ["0", "1"], tmp_path).run() == 0
    said = capsys.readouterr().out
    assert said.index("early: done") < said.index("late begins")
    assert said.index("late: done") < said.index("both begins")
    assert (tmp_path / "logs" / "both.log").read_text() == "0,1\n"
    assert "4 done, 0 failed, 0 left out" in said


def test_each_card_has_its_share_of_the_processors(tmp_path: Path) -> None:
    there = os.sched_getaffinity(0)
    code = "import os, time; print(*sorted(os.sched_getaffinity(0))); time.sleep(1)"
    assert Table([task("one", code=code), task("other", code=code)], ["0", "1"], tmp_path).run() == 0
    one, other = (set((tmp_path / "logs" / f"{name}.log").read_text().split()) for name in ("one", "other"))
    assert {*map(int, one | other)} == there == os.sched_getaffinity(0)
    assert len(there) == 1 or not one & other


def test_a_failure_keeps_back_what_needs_it_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [task("bad", code="raise SystemExit(3)"), task("next", "bad"), task("last", "next"), task("free")]
    table = Table([*wanted, task("two", cards=2)], ["0"], tmp_path)
    assert table.run() == 1
    assert "1 done, 1 failed, 3 left out" in capsys.readouterr().out
    states = {one["name"]: (one["state"], one["seconds"] is None) for one in table.document()["tasks"]}
    assert states["bad"] == ("failed", False)
    assert states["next"] == ("left out", True)


def test_what_missed_a_goal_but_made_its_files_keeps_nothing_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = f"import pathlib; pathlib.Path({str(tmp_path)!r}, 'run').mkdir(); raise SystemExit(1)"
    wanted = [task("slow", code=made, makes="r*"), task("next", "slow"), task("none", makes="x*"), task("last", "none")]
    assert Table(wanted, ["0"], tmp_path).run() == 1
    said = capsys.readouterr().out
    assert "next: done" in said
    assert "last is left out" in said
    assert "2 done, 1 failed, 1 left out" in said


def test_the_table_is_one_that_can_be_done(tmp_path: Path) -> None:
    everything = tasks(tmp_path, tmp_path, tmp_path)
    names = [each.name for each in everything]
    assert len(set(names)) == len(names)
    assert all(set(each.after) <= set(names[:place]) for place, each in enumerate(everything))


def test_a_stage_of_the_suite_that_writes_no_result_fails_and_an_older_one_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Namespace(out=tmp_path, work=tmp_path, phi3_tokenizer=None, layers=run.LAYERS, phi3_steps=run.STEPS)
    for name in run.STAGES:
        run.result_file(name, wish).write_text('{"checks": {"of an older run": true}}')
    writes = 'import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(\'{"checks": {"it is good": true}}\')'
    argv = {name: ["-c", writes, str(run.result_file(name, wish))] for name in run.STAGES}
    argv["dpo"] = ["-c", "raise SystemExit(3)"]
    stages = [Task(name, 1, words, env="clients") for name, words in argv.items()]
    monkeypatch.setattr(run, "tasks", lambda *_: stages)
    monkeypatch.setattr(run, "about", lambda: {"date": "today"})
    run.on_all_cards(list(run.STAGES), ["0"], wish)
    whole = json.loads(run.result_file("suite", wish).read_text())
    assert whole["stages"]["dpo"]["checks"] == {"dpo runs": False}
    assert all(each["checks"] == {"it is good": True} for name, each in whole["stages"].items() if name != "dpo")
