"""An optional judge: a further model compares the two answers to each question, in both orders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.answers import Answer
from clients.ask import AskOptions, ask_all
from clients.endpoint import Endpoint, model_names, refuse_unknown
from clients.questions import Question
from clients.ratings import FILE, majority, read_ratings
from clients.statistics import wilson
from modelstore import UserError

INSTRUCTION = (
    "You compare two answers to a question. Judge only whether they are correct and complete, by the reference. "
    "Ignore length and style. The order of the answers means nothing. Reply with one word: A, B or SAME."
)
ORDERS = {"base first": ("base", "tuned"), "tuned first": ("tuned", "base")}


async def judge(endpoint: Endpoint, model: str, report: Path, options: AskOptions) -> dict[str, Any]:
    """judge.json beside the report: wins, ties and losses of the tuned model, consistency, agreement with people.

    Interrupted, it goes on where it stopped. Raises UserError when there is nothing to judge.
    """
    refuse_unknown([model], await model_names(endpoint), endpoint.url)
    page = json.loads(report.read_text(encoding="utf-8"))
    rows = [row for row in page["answers"] if row["base"]["score"] and row["tuned"]["score"]]
    if not rows:
        raise UserError(f"{report} holds no question that both models answered, so there is nothing to judge.")
    asked = [_asked(row, order) for row in rows for order in ORDERS]
    answers = await ask_all(endpoint, model, asked, options, report.parent / "judge.jsonl", _ignore)
    said = {answer.question_id: preference(answer) for answer in answers}
    found = {row["id"]: tuple(said[_name(row["id"], order)] for order in ORDERS) for row in rows}
    summary = {"model": model, **summarise_verdicts(found, majority(read_ratings(report.parent / FILE)))}
    (report.parent / "judge.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _ignore(_: Answer) -> None:
    """The summary says it all."""


def _name(question_id: str, order: str) -> str:
    return f"{question_id} {order}"


def _asked(row: Mapping[str, Any], order: str) -> Question:
    first, second = ORDERS[order]
    text = (
        f"Question:\n{row['question']}\n\nReference answer:\n{row['answer']}\n\n"
        f"Answer A:\n{row[first]['text']}\n\nAnswer B:\n{row[second]['text']}\n\nWhich is better: A, B or SAME?"
    )
    turns = (("system", INSTRUCTION), ("user", text))
    return Question(_name(row["id"], order), row["category"], text, "-", (), messages=turns, scorer="exact")


def preference(answer: Answer) -> int | None:
    """1 for the tuned model, -1 for the base, 0 for the same; None where the judge gave no verdict."""
    said = answer.text.strip(" .*\n")
    found = re.search(r"\b(A|B|[Ss](?:AME|ame))\b", said.upper() if len(said) == 1 else said)
    if answer.error or not found:
        return None
    if found[1].upper() == "SAME":
        return 0
    is_first = found[1] == "A"
    return 1 if is_first == answer.question_id.endswith(" tuned first") else -1


def summarise_verdicts(found: Mapping[str, tuple[int | None, ...]], people: Mapping[str, int]) -> dict[str, Any]:
    """A verdict counts when both orders agree; where they contradict each other it is the same, and inconsistent."""
    judged = {name: pair for name, pair in found.items() if None not in pair}
    agreed = {name: pair[0] if pair[0] == pair[1] else 0 for name, pair in judged.items()}
    wins, losses = (sum(one == sign for one in agreed.values()) for sign in (1, -1))
    low, high = wilson(wins, wins + losses) if wins + losses else (None, None)
    both = [agreed[name] == people[name] for name in agreed if name in people]
    return {
        "judged": len(judged),
        "without_verdict": len(found) - len(judged),
        "wins": wins,
        "losses": losses,
        "ties": len(judged) - wins - losses,
        "win_rate": wins / (wins + losses) if wins + losses else None,
        "win_low": low,
        "win_high": high,
        "consistent": sum(a == b for a, b in judged.values()) / len(judged) if judged else None,
        "human_pairs": len(both),
        "human_agreement": sum(both) / len(both) if both else None,
    }
