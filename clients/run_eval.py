"""`eval` from question set to report folder."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clients import provenance
from clients.answers import Answer
from clients.ask import AskOptions, ask_all
from clients.document import document
from clients.endpoint import Endpoint, model_names, refuse_unknown, served_run
from clients.engine_facts import engine_name, slots
from clients.eval_config import EvalConfig
from clients.evaluate import gate, scored, summarise
from clients.extras import with_extras
from clients.folders import report_folder
from clients.questions import Question, read_questions
from clients.report import write_report
from clients.report_markdown import markdown
from modelstore import UserError

RESULTS = "results.jsonl"
CONCURRENCY = 8  # where the server does not say how many streams it answers at once
MOST_AT_ONCE = 256


@dataclass(frozen=True)
class EvalWish:
    """What to ask of whom, and where the report goes."""

    questions: Path
    store: Path
    out: Path | None
    config: EvalConfig


@dataclass(frozen=True)
class EvalOutcome:
    """Where the report lies and what it says."""

    summary: dict[str, Any]
    gate: dict[str, Any]
    run_id: str | None
    report: Path
    text: str


async def run_eval(endpoint: Endpoint, wish: EvalWish) -> EvalOutcome:
    """One model after the other: asked at once they would compete for the same processors."""
    questions = read_questions(wish.questions)
    names = await model_names(endpoint)
    refuse_unknown(wish.config.models, names, endpoint.url)
    run_id = served_run(names)
    folder = wish.out or report_folder(wish.store, run_id)
    _open_folder(folder, _what_is_asked(wish, endpoint))
    print(f"answers go to {folder}; if interrupted, go on with --out {folder}", file=sys.stderr)
    options = await _options(endpoint, wish.config)
    answers = await _ask(endpoint, wish.config.models, questions, options, folder / RESULTS)
    rows = {model: scored(questions, given) for model, given in answers.items()}
    summary = summarise(rows)
    judged = gate(summary, wish.config.gate_level)
    asked = _what_is_asked(wish, endpoint) | {
        "concurrency": options.concurrency,
        "engine": await engine_name(endpoint),
        "builds": sorted({answer.engine for given in answers.values() for answer in given if answer.engine}),
    }
    page = document(summary, judged, rows, asked, provenance.of_run(wish.store, run_id))
    (folder / "gate.json").write_text(json.dumps(judged, indent=1) + "\n", encoding="utf-8")
    write_report(with_extras(page, folder, wish.store), folder)
    text = f"{markdown(page)}\nreport: {folder / 'report.html'}"
    return EvalOutcome(summary, judged, run_id, folder / "report.html", text)


async def _options(endpoint: Endpoint, config: EvalConfig) -> AskOptions:
    """With as many requests at once as the server answers at once, where the user left it open: fewer leave slots
    empty, more only wait.
    """
    options = config.ask_options()
    if options.concurrency:
        return options
    found = await slots(endpoint)
    return replace(options, concurrency=min(found or CONCURRENCY, MOST_AT_ONCE))


async def _ask(
    endpoint: Endpoint, models: Sequence[str], questions: Sequence[Question], options: AskOptions, results: Path
) -> dict[str, list[Answer]]:
    with _progress(len(models) * len(questions) * options.samples) as on_answer:
        return {model: await ask_all(endpoint, model, questions, options, results, on_answer) for model in models}


def _what_is_asked(wish: EvalWish, endpoint: Endpoint) -> dict[str, Any]:
    """All that answers depend on: a folder is continued only with the same."""
    options = asdict(wish.config.ask_options())
    for speed in ("concurrency", "attempts", "timeout_s"):
        options.pop(speed)
    return {
        "url": endpoint.url,
        "questions": str(wish.questions),
        "questions_sha256": hashlib.sha256(wish.questions.read_bytes()).hexdigest(),
        "models": wish.config.models,
        "options": json.loads(json.dumps(options)),
    }


def _open_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Raises UserError when the folder holds answers to other questions or under other options."""
    note = folder / "asked.json"
    folder.mkdir(parents=True, exist_ok=True)
    if note.exists() and (folder / RESULTS).exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        for name in ("questions_sha256", "options"):
            if before.get(name) != asked[name]:
                raise UserError(
                    f"{folder} holds answers that were asked with other {name.split('_', maxsplit=1)[0]}. "
                    "Name another folder with --out, or ask as before."
                )
    note.write_text(json.dumps(asked, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Answer], None]]:
    """A bar on a terminal, a line for every tenth of the work elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("asking", total=total)
            yield lambda _: bar.advance(task)
        return
    count = 0

    def say(_: Answer) -> None:
        nonlocal count
        count += 1
        if count % max(1, total // 10) == 0:
            print(f"asked {count}/{total}", file=sys.stderr, flush=True)

    yield say
