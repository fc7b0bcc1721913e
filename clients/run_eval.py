"""`eval` from question set to report folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clients.ask import Answer, AskOptions, ask_all
from clients.endpoint import Endpoint, model_names, refuse_unknown, served_run
from clients.evaluate import document, is_worse, scored, summarise
from clients.questions import read_questions
from clients.report import markdown, write_pages
from modelstore import Run, Store, UserError

GATE_LEVEL = 0.05


@dataclass(frozen=True)
class EvalWish:
    """What to ask of whom, and where the report goes."""

    questions: Path
    store: Path
    out: Path | None
    base: str
    tuned: str
    options: AskOptions


@dataclass(frozen=True)
class EvalOutcome:
    """Where the report lies and what it says."""

    summary: dict[str, Any]
    run_id: str | None
    report: Path
    text: str
    failed: int
    worse_in: list[str]


async def run_eval(endpoint: Endpoint, wish: EvalWish) -> EvalOutcome:
    """Base first, then tuned: asked at once they would compete for the same processors."""
    questions = read_questions(wish.questions)
    names = await model_names(endpoint)
    refuse_unknown([wish.base, wish.tuned], names, endpoint.url)
    run_id = served_run(names)
    folder = wish.out or _report_folder(wish.store, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    with _progress(2 * len(questions)) as on_answer:
        base = await ask_all(endpoint, wish.base, questions, wish.options, results, on_answer)
        tuned = await ask_all(endpoint, wish.tuned, questions, wish.options, results, on_answer)
    rows = scored(questions, base), scored(questions, tuned)
    summary = summarise(*rows)
    failed = summary["base"]["failed"] + summary["tuned"]["failed"]
    page = document(summary, *rows, wish.questions, wish.options, _provenance(wish.store, run_id))
    (folder / "report.json").write_text(json.dumps(page, ensure_ascii=False, indent=1), encoding="utf-8")
    write_pages(page, folder)
    text = f"{markdown(page)}\nreport: {folder / 'report.html'}"
    worse_in = is_worse(summary, GATE_LEVEL)
    return EvalOutcome(summary, run_id, folder / "report.html", text, failed, worse_in)


def rewrite(store_path: Path, ref: str) -> Path:
    """Write the pages of a run's newest report again. Raises UserError when there is none."""
    store = Store(store_path)
    run = store.run(ref)
    found = sorted(store.reports(run.id).glob("*/report.json"))
    if not found:
        raise UserError(f"{run.id} has not been evaluated yet: `make serve RUN={run.id}`, then `make eval`.")
    write_pages(json.loads(found[-1].read_text(encoding="utf-8")), found[-1].parent)
    return found[-1].parent / "report.html"


def _report_folder(store: Path, run_id: str | None) -> Path:
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Store(store).reports(run_id) / stamp if run_id else Path("reports") / stamp


def _provenance(store_path: Path, run_id: str | None) -> dict[str, Any] | None:
    """What the run's manifest says, and its training curve; None where the store is not on this machine."""
    try:
        run = Store(store_path).run(run_id) if run_id else None
    except UserError:
        return None
    return _of_run(run) if run else None


def _of_run(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    log = run.path / "training.jsonl"
    curve = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {
        "id": run.id,
        "created": manifest.created,
        "base": manifest.base,
        "dataset": manifest.dataset,
        "training": manifest.training,
        "hardware": manifest.hardware,
        "packages": manifest.packages,
        "serve": manifest.serve,
        "sizes": {a.quantization: a.bytes for a in manifest.artifacts if a.kind == "gguf"},
        "verification": [asdict(check) for check in manifest.verification],
        "curve": [{"step": line["step"], "loss": line["loss"]} for line in curve if "loss" in line],
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Answer], None]]:
    """A bar on a terminal, a line for every tenth of the work elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
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
