"""Several evaluations on one page: the trend of accuracy, time and size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.folders import newest_report
from clients.report import environment
from clients.report_markdown import accuracy
from modelstore import Store, UserError


def points(store: Path, refs: Sequence[str]) -> list[dict[str, Any]]:
    """The newest evaluation of each run, oldest first; of every evaluated run where none is named."""
    if refs:
        reports = list(dict.fromkeys(newest_report(store, ref) for ref in refs))
    else:
        found = {run.id: sorted(Store(store).reports(run.id).glob("*/report.json")) for run in Store(store).runs()}
        reports = [paths[-1] for paths in found.values() if paths]
    if len(reports) < 2:
        raise UserError(f"A comparison needs two evaluated runs; {store} has {len(reports)}. `make runs` lists them.")
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in reports]
    return sorted(map(_point, pages), key=lambda point: str(point["created"]))


def _point(page: dict[str, Any]) -> dict[str, Any]:
    run, summary = page["run"] or {}, page["summary"]
    quantization = run.get("serve", {}).get("quantization")
    return {
        "run": run.get("id") or ", ".join(page["asked"]["models"]),
        "created": page["created"],
        "base": summary["base"],
        "tuned": summary["tuned"],
        "categories": {name: part["tuned"]["strict"] for name, part in summary["by_category"].items()},
        "verdict": summary["verdict"],
        "verdict_zh": summary["verdict_zh"],
        "gate": page["gate"]["passed"],
        "train_rows": run.get("dataset", {}).get("train_rows"),
        "seconds": run.get("training", {}).get("seconds"),
        "bytes": run.get("sizes", {}).get(quantization),
        "questions_sha256": page["asked"]["questions_sha256"],
    }


def write_comparison(found: Sequence[dict[str, Any]], out: Path) -> Path:
    """The page, with a Markdown table beside it; returns the page."""
    from clients.report_plots import trend

    out.parent.mkdir(parents=True, exist_ok=True)
    template = environment().get_template("compare.html.j2")
    page = template.render(
        points=found,
        plot=trend(found),
        categories=list(dict.fromkeys(name for point in found for name in point["categories"])),
        is_comparable=len({point["questions_sha256"] for point in found}) == 1,
    )
    out.write_text(page, encoding="utf-8")
    out.with_suffix(".md").write_text(_markdown(found), encoding="utf-8")
    return out


def _markdown(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        f"| {point['run']} | {point['created']} | {accuracy(point['base'])} | {accuracy(point['tuned'])} | "
        f"{'passed' if point['gate'] else 'not passed'} |"
        for point in found
    ]
    head = ["| run | evaluated | base | tuned | gate |", "|---|---|---|---|---|"]
    is_comparable = len({point["questions_sha256"] for point in found}) == 1
    note = [] if is_comparable else ["", "The question sets differ: these figures cannot be compared."]
    return "\n".join([*head, *rows, *note]) + "\n"
