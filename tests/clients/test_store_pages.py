"""The commands that work on a store: report, comparison, ratings, and what promotion reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clients import provenance
from clients.cli import main
from clients.ratings import FILE, Rating, keep_rating
from clients.report import write_report
from modelstore import ArtifactSpec, Store, UserError
from tests.clients import pages

RUNS = ("20260101-0000-a", "20260102-0000-b")
CONTAMINATION = {"questions": 146, "limit": 0.9, "highest": 0.5, "highest_id": "x"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs, each evaluated and measured once."""
    store = Store(tmp_path / "models")
    store.create()
    for run_id in RUNS:
        fields = {name: pages.run()[name] for name in ("base", "dataset", "training", "hardware", "packages", "serve")}
        with store.stage(run_id) as staging:
            (staging.path / "m.gguf").write_bytes(b"weights")
            (staging.path / "training.jsonl").write_text('{"step": 5, "loss": 1.5, "lr": 0.1}\n{"step": 6}\n')
            (staging.path / "prepare.json").write_text(json.dumps({"contamination": CONTAMINATION}))
            specs = [ArtifactSpec("gguf", "m.gguf", "Q8_0"), ArtifactSpec("training-log", "training.jsonl")]
            staging.publish(fields, [*specs, ArtifactSpec("prepare-report", "prepare.json")])
        folder = store.reports(run_id) / "20260103-000000"
        folder.mkdir(parents=True)
        made = pages.page(pages.questions()[:12])
        write_report(made | {"run": provenance.of_run(store.path, run_id), "bench": None}, folder)
        (folder / "bench.json").write_text(json.dumps(pages.bench()))
    store.promote(RUNS[0])
    return store


def run(store: Store, *argv: str) -> Result:
    return CliRunner().invoke(main, [*argv, "--store", str(store.path)])


def test_the_report_takes_up_what_was_added_since(store: Store) -> None:
    folder = store.reports(RUNS[0]) / "20260103-000000"
    keep_rating(folder / FILE, Rating("Ana", "api-003", 2, 4, False))
    (folder / "judge.json").write_text(
        json.dumps(dict.fromkeys(("wins", "ties", "losses"), 1) | dict.fromkeys(JUDGED, 0.5) | {"model": "judge-1"})
    )
    done = run(store, "report")
    assert done.exit_code == 0 and done.output.strip() == str(folder / "report.html")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "What people say" in html and "judge-1" in html and html.count("<svg") == 3
    assert json.loads((folder / "report.json").read_text())["human"]["raters"] == 1


JUDGED = ("win_rate", "win_low", "win_high", "consistent", "human_agreement")


def test_runs_are_compared(store: Store) -> None:
    for argv in (["report", RUNS[0], "--compare", RUNS[1]], ["report", "--compare", "all"]):
        done = run(store, *argv)
        page = store.path / "reports" / "compare.html"
        assert done.exit_code == 0 and done.output.strip() == str(page)
        assert all(name in page.read_text(encoding="utf-8") for name in RUNS)
    alone = run(store, "report", RUNS[0], "--compare", RUNS[0])
    assert isinstance(alone.exception, UserError) and "needs two" in str(alone.exception)


def test_ratings_are_exported_with_the_models_named(store: Store) -> None:
    keep_rating(store.reports(RUNS[0]) / "20260103-000000" / FILE, Rating("Ana", "api-003", 2, 4, False))
    (row,) = [json.loads(line) for line in run(store, "rate", "--export").output.splitlines()]
    assert (row["rater"], row["base"], row["tuned"]) == ("Ana", 2, 4)
    assert json.loads(run(store, "rate", "--json").output)["wins"] == 1


def test_a_run_without_evaluation_is_explained(store: Store) -> None:
    for path in sorted(store.reports(RUNS[1]).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for argv in (["report", RUNS[1]], ["rate", RUNS[1]]):
        done = run(store, *argv)
        assert isinstance(done.exception, UserError) and "has not been evaluated yet" in str(done.exception)


def test_the_provenance_is_the_manifests(store: Store) -> None:
    found = provenance.of_run(store.path, RUNS[0])
    assert found and found["curve"] == [{"step": 5, "loss": 1.5}] and found["contamination"] == CONTAMINATION
    assert found["sizes"] == {"Q8_0": 7} and provenance.of_run(store.path, "20270101-none") is None
