"""The command line of the clients: parses and delegates."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from clients.ask import AskOptions

URL = "http://127.0.0.1:8000/v1"
_url = click.option("--url", default=URL, show_default=True, help="Any OpenAI-compatible endpoint.")
_key = click.option("--api-key", default="", help="Else TUNESHIP_API_KEY_FILE, TUNESHIP_API_KEY or OPENAI_API_KEY.")
_store = click.option("--store", type=click.Path(path_type=Path), default=Path("models"), show_default=True)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Evaluate, measure and talk to an OpenAI-compatible endpoint."""


@main.command("eval")
@_url
@_key
@_store
@_json
@click.option("--questions", type=click.Path(path_type=Path), default=Path("data/handbook-en/questions.jsonl"))
@click.option("--base", default="base", show_default=True, help="Name of the model to compare with.")
@click.option("--tuned", default="tuned", show_default=True, help="Name of the model in question.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report; an interrupted one is continued.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--system", default="", help="System prompt.")
@click.option("--gate", is_flag=True, help="Exit 1 when tuned is worse in a category (Holm-corrected, 5%).")
def evaluate(url: str, api_key: str, as_json: bool, **wish: Any) -> None:
    """Ask every question to base and tuned; write results.jsonl, report.json, report.html and report.md."""
    from clients.endpoint import Endpoint
    from clients.run_eval import EvalWish, run_eval

    options = AskOptions(wish["max_tokens"], wish["temperature"], wish["system"], wish["concurrency"])
    order = EvalWish(wish["questions"], wish["store"], wish["out"], wish["base"], wish["tuned"], options)
    outcome = asyncio.run(run_eval(Endpoint(url, api_key), order))
    if as_json:
        print(json.dumps(outcome.summary | {"run": outcome.run_id, "report": str(outcome.report)}))
    else:
        print(outcome.text)
    if outcome.failed or (wish["gate"] and outcome.worse_in):
        why = f"{outcome.failed} requests failed" if outcome.failed else f"worse in {', '.join(outcome.worse_in)}"
        click.echo(f"error: {why}", err=True)
        sys.exit(1)


@main.command()
@click.argument("run", default="current")
@_store
def report(run: str, store: Path) -> None:
    """Write the pages of RUN's newest evaluation again from its report.json."""
    from clients.run_eval import rewrite

    print(rewrite(store, run))


@main.command()
@_url
@_key
@_json
@click.option("--model", default="tuned", show_default=True)
@click.option("--streams", default="1,4,8", show_default=True, help="Concurrencies, separated by commas.")
@click.option("--requests", type=click.IntRange(1), default=16, show_default=True, help="For each concurrency.")
@click.option("--prompt-words", type=click.IntRange(1), default=128, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=64, show_default=True)
def bench(url: str, api_key: str, as_json: bool, **wish: Any) -> None:
    """Closed-loop load with unique prompts: throughput, time to first token, time per output token."""
    from clients.bench import BenchWish, run_bench, table
    from clients.endpoint import Endpoint
    from modelstore import UserError

    try:
        streams = tuple(int(part) for part in wish["streams"].split(","))
        if min(streams) < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--streams {wish['streams']!r}: numbers from 1 separated by commas are expected.") from None
    order = BenchWish(wish["model"], streams, wish["requests"], wish["prompt_words"], wish["output_tokens"])
    rows = asyncio.run(run_bench(Endpoint(url, api_key), order))
    print(json.dumps(rows) if as_json else table(rows))
    if any(row["failed"] for row in rows):
        sys.exit(1)


@main.command()
@_url
@_key
@click.option("--model", default="tuned", show_default=True)
def chat(url: str, api_key: str, model: str) -> None:
    """Talk to a model; /model NAME switches, /both asks base and tuned, /quit ends."""
    from clients.chat import run_chat
    from clients.endpoint import Endpoint

    asyncio.run(run_chat(Endpoint(url, api_key), model))
