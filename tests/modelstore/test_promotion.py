"""Who may become `current`, and what is remembered of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelstore import ArtifactSpec, Check, Store, UserError
from modelstore.promotion import history, newest_gate

ROOT = Path(__file__).parents[2]
GOOD, BAD = "20260101-0000-good", "20260102-0000-bad"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run whose verification passed, and one whose did not."""
    store = Store(tmp_path / "models")
    store.create()
    for run_id, passed in ((GOOD, True), (BAD, False)):
        with store.stage(run_id) as staging:
            (staging.path / "m.gguf").write_bytes(b"weights")
            checks = [Check("merged is the fine-tune", passed, {"kl": 0.5}, "kl <= 0.01")]
            staging.publish({"base": {"id": "b"}, "verification": checks}, [ArtifactSpec("gguf", "m.gguf", "Q8_0")])
    return store


def gate(store: Store, time: str, text: str) -> None:
    folder = store.reports(GOOD) / time
    folder.mkdir(parents=True)
    (folder / "gate.json").write_text(text)


def command(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "modelstore", "--store", str(store.path), *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_failed_verification_is_refused_unless_forced_with_a_reason(store: Store) -> None:
    store.promote(GOOD)
    refused = command(store, "promote", BAD)
    assert refused.returncode == 2
    assert "merged is the fine-tune" in refused.stderr
    assert "--force --why" in refused.stderr
    assert command(store, "promote", BAD, "--force").returncode == 2
    assert store.channel("current") == GOOD
    forced = command(store, "promote", BAD, "--force", "--why", "the limit was wrong", "--by", "ada")
    assert forced.returncode == 0, forced.stderr
    assert store.channel("current") == BAD
    last = list(history(store.path / "channels"))[-1]
    assert (last["by"], last["why"], last["forced"], last["before"]) == ("ada", "the limit was wrong", True, GOOD)
    assert "kl <= 0.01" in last["against"][0]


def test_the_newest_gate_counts(store: Store) -> None:
    assert "no evaluation gate" in command(store, "promote", GOOD).stdout
    gate(store, "20260103-100000", '{"passed": true}')
    gate(store, "20260104-100000", '{"passed": false, "why": "accuracy"}')
    (store.reports(GOOD) / "20260105-100000").mkdir()  # an evaluation without a gate says nothing
    with pytest.raises(UserError, match="20260104-100000"):
        store.promote(GOOD)
    gate(store, "20260106-100000", '{"passed": true}')
    store.promote(GOOD)
    assert "passed" in command(store, "runs").stdout


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"passed": "yes"}', '{"passed": 1}'])
def test_a_gate_that_says_nothing_clear_has_failed(store: Store, text: str) -> None:
    gate(store, "20260103-100000", text)
    found = newest_gate(store.reports(GOOD))
    assert found is not None
    assert found["passed"] is False
    with pytest.raises(UserError, match="gate"):
        store.promote(GOOD)


def test_a_rollback_is_never_refused_and_is_recorded(store: Store) -> None:
    store.promote(GOOD)
    store.promote(BAD, force=True, why="a test")
    gate(store, "20260103-100000", '{"passed": false}')
    done = command(store, "rollback", "--why", "worse answers", "--json")
    assert json.loads(done.stdout)["current"] == GOOD
    said = command(store, "history").stdout.splitlines()
    assert [line.split()[1] for line in said] == ["promote", "promote", "rollback"]
    assert said[1].count("FORCED") == 1
    assert said[2].endswith("worse answers")


def test_a_line_that_a_crash_cut_off_is_left_out(store: Store) -> None:
    store.promote(GOOD)
    with (store.path / "channels/history.jsonl").open("a") as file:
        file.write('{"time": "2026')
    store.promote(GOOD)
    assert [entry["run"] for entry in history(store.path / "channels")] == [GOOD, GOOD]
