"""The command `judge`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from clients.cli_options import as_json, endpoint_options, store


@click.command()
@click.argument("run", default="current")
@endpoint_options
@store
@as_json
@click.option("--model", required=True, help="The judging model at URL.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="A report.json; default: RUN's newest.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=16, show_default=True, help="More for models that reason."
)
@click.option("--concurrency", type=click.IntRange(1, 1024), default=4, show_default=True)
def judge(run: str, url: str, api_key: str, store: Path, as_json: bool, **wish: Any) -> None:
    """Let a further model compare base and tuned answers, each pair in both orders; feeds the next report."""
    import asyncio

    from clients.ask import AskOptions
    from clients.endpoint import Endpoint
    from clients.folders import newest_report
    from clients.judge import judge as run_judge

    options = AskOptions(max_tokens=wish["max_tokens"], concurrency=wish["concurrency"])
    path = wish["report_path"] or newest_report(store, run)
    found = asyncio.run(run_judge(Endpoint(url, api_key), wish["model"], path, options))
    print(json.dumps(found) if as_json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    if found["without_verdict"]:
        click.echo(f"error: {found['without_verdict']} pairs got no verdict", err=True)
        sys.exit(1)
