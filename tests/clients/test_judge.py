"""The judge: both orders, contradictions, agreement with people."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from clients.answers import Answer
from clients.ask import AskOptions
from clients.endpoint import Endpoint
from clients.judge import judge, preference, summarise_verdicts
from clients.ratings import Rating, keep_rating
from modelstore import UserError
from tests.clients import pages


@pytest.mark.parametrize(
    ("text", "order", "prefers"),
    [
        ("A", "base first", -1),
        ("**B**", "base first", 1),
        ("A.", "tuned first", 1),
        ("Answer B is better", "tuned first", -1),
        ("same", "tuned first", 0),
        ("I like a lot of both", "base first", None),
        ("b", "base first", 1),
    ],
)
def test_a_verdict_is_read_with_its_order(text: str, order: str, prefers: int | None) -> None:
    assert preference(Answer(f"q {order}", "j", text, "", "stop", 1.0, 1.0, 1, 1)) == prefers


def test_contradictions_are_ties_and_people_are_asked() -> None:
    found = summarise_verdicts(
        {"1": (1, 1), "2": (1, -1), "3": (-1, -1), "4": (None, 1), "5": (0, 0)}, {"1": 1, "3": 1, "4": 1}
    )
    assert (found["judged"], found["without_verdict"], found["wins"], found["losses"], found["ties"]) == (4, 1, 1, 1, 2)
    assert found["consistent"] == 0.75 and found["human_agreement"] == 0.5 and found["human_pairs"] == 2
    empty = summarise_verdicts({"1": (None, None)}, {})
    assert empty["win_rate"] is None and empty["consistent"] is None and empty["human_agreement"] is None


def test_a_judge_that_gives_no_verdict_is_counted(endpoint: Endpoint, tmp_path: Path, asked: list[str]) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps(pages.page(pages.questions()[:3])), encoding="utf-8")
    keep_rating(tmp_path / "ratings.jsonl", Rating("a", "api-003", 1, 5, False))
    found = asyncio.run(judge(endpoint, "tuned", report, AskOptions()))
    assert found["judged"] == 0 and found["without_verdict"] == 2 and len(asked) == 4
    assert "Reference answer" in asked[0] and json.loads((tmp_path / "judge.json").read_text()) == found
    asyncio.run(judge(endpoint, "tuned", report, AskOptions()))
    assert len(asked) == 4, "what was judged is not asked again"


def test_there_must_be_something_to_judge(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"answers": []}')
    with pytest.raises(UserError, match="nothing to judge"):
        asyncio.run(judge(endpoint, "tuned", tmp_path / "report.json", AskOptions()))
