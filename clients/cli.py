"""The command line of the clients: parses and delegates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from clients.cli_bench import bench
from clients.cli_judge import judge
from clients.cli_options import as_json, endpoint_options, store
from clients.cli_rate import rate

PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Evaluate, measure and talk to an OpenAI-compatible endpoint."""


@main.command("eval")
@endpoint_options
@store
@as_json
@click.option("--questions", type=PATH, default=Path("data/handbook-en/questions.jsonl"), show_default=True)
@click.option("--config", type=PATH, help="TOML file with the options below; an option given here wins.")
@click.option("--out", type=PATH, help="Folder of the report; an interrupted one is continued.")
@click.option("--base", help="Name of the model to compare with.  [default: base]")
@click.option("--tuned", help="Name of the model in question.  [default: tuned]")
@click.option("--also", multiple=True, help="A further model, compared with base; may be repeated.")
@click.option("--system", help="System prompt.")
@click.option("--max-tokens", type=int, help="[default: 64]")
@click.option("--samples", type=int, help="Answers to each question.  [default: 1]")
@click.option("--temperature", type=float, help="[default: 0, greedy]")
@click.option("--seed", type=int, help="[default: 3407]")
@click.option("--stop", multiple=True, help="A text that ends an answer; up to four.")
@click.option("--concurrency", type=int, help="Requests at once.  [default: the server's slots, else 8]")
@click.option("--attempts", type=int, help="A request that fails so often counts as failed.  [default: 4]")
@click.option("--timeout-s", type=float, help="[default: 120]")
@click.option("--gate", is_flag=True, help="Exit 1 when tuned is worse in a category, or one was not measured.")
@click.option("--gate-level", type=float, help="Highest rate of false alarms of the gate.  [default: 0.05]")
def evaluate(url: str, api_key: str, as_json: bool, **wish: Any) -> None:
    """Ask every question to base and tuned; write results.jsonl, report.json, report.html, report.md, gate.json."""
    import asyncio

    from clients.endpoint import Endpoint
    from clients.eval_config import read_config
    from clients.run_eval import EvalWish, run_eval

    where = {name: wish.pop(name) for name in ("questions", "store", "out")}
    is_gate, file = wish.pop("gate"), wish.pop("config")
    given = {name: value for name, value in wish.items() if value not in (None, ())}
    order = EvalWish(**where, config=read_config(file, given))
    outcome = asyncio.run(run_eval(Endpoint(url, api_key), order))
    if as_json:
        print(json.dumps(outcome.summary | {"run": outcome.run_id, "report": str(outcome.report)}))
    else:
        print(outcome.text)
    failed = outcome.gate["failed_requests"]
    if failed or (is_gate and not outcome.gate["passed"]):
        bad = [name for name, one in outcome.gate["categories"].items() if not one["passed"]]
        why = f"{failed} requests failed" if failed else f"the gate did not pass: {', '.join(bad)}"
        click.echo(f"error: {why}", err=True)
        sys.exit(1)


@main.command()
@click.argument("run", default="current")
@store
@click.option("--compare", "others", multiple=True, help="Compare RUN with this run, several times, or with `all`.")
@click.option("--out", type=PATH, help="Page of --compare; default: compare.html in the store's reports.")
def report(run: str, store: Path, others: tuple[str, ...], out: Path | None) -> None:
    """Write the pages of RUN's newest evaluation again, with the newest load test, ratings and verdicts."""
    from clients.extras import with_extras
    from clients.folders import newest_report
    from clients.report import write_report

    if others:
        from clients.compare import points, write_comparison

        found = points(store, () if "all" in others else (run, *others))
        print(write_comparison(found, out or store / "reports" / "compare.html"))
        return
    path = newest_report(store, run)
    page = json.loads(path.read_text(encoding="utf-8"))
    print(write_report(with_extras(page, path.parent, store), path.parent))


@main.command()
@endpoint_options
@click.option("--model", "models", multiple=True, help="Twice: side by side.  [default: tuned]")
@click.option("--system", default="", help="System prompt.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
def chat(url: str, api_key: str, models: tuple[str, ...], **options: Any) -> None:
    """Talk to a model, or to two side by side; /model NAME switches, /both shows two, /quit ends."""
    import asyncio

    from clients.chat import ChatOptions, run_chat
    from clients.endpoint import Endpoint

    asyncio.run(run_chat(Endpoint(url, api_key), list(models) or ["tuned"], ChatOptions(**options)))


main.add_command(bench)
main.add_command(rate)
main.add_command(judge)
