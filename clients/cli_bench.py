"""The command `bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli_options import as_json, endpoint_options, store

if TYPE_CHECKING:
    from clients.bench_figures import Slo

MOST = 1000  # connections that the openai client opens at once


@click.command()
@endpoint_options
@store
@as_json
@click.option("--model", default="tuned", show_default=True)
@click.option(
    "--streams", default="1,4,8", show_default=True, help="Closed loops: streams at once, separated by commas."
)
@click.option("--rate", default="", help="Open loops: requests a second (Poisson), separated by commas.")
@click.option("--requests", type=click.IntRange(1), default=100, show_default=True, help="For each load.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option(
    "--warmup", type=click.IntRange(0), default=1, show_default=True, help="Uncounted requests of each stream."
)
@click.option("--slo", default="", help="Limits for goodput: ttft=500,tpot=50,e2e=10 (ms, ms, s).")
@click.option("--plain", is_flag=True, help="Send no ignore_eos, which OpenAI's own endpoint refuses.")
@click.option("--out", type=click.Path(path_type=Path), help="Where bench.json goes; default: the run's reports.")
def bench(url: str, api_key: str, as_json: bool, store: Path, out: Path | None, **wish: Any) -> None:
    """Load with unique prompts: throughput, TTFT, inter-token latency, time per output token, goodput."""
    import asyncio

    from clients.bench import BenchWish, run_bench
    from clients.bench_figures import table
    from clients.bench_file import write_bench
    from clients.endpoint import Endpoint
    from clients.load import Load

    streams = tuple(int(one) for one in _numbers("--streams", wish["streams"], whole=True))
    rates = _numbers("--rate", wish["rate"], whole=False)
    load = Load(wish["model"], wish["prompt_tokens"], wish["output_tokens"], not wish["plain"])
    order = BenchWish(load, streams, rates, wish["requests"], wish["warmup"], _slo(wish["slo"]))
    endpoint = Endpoint(url, api_key)
    rows = asyncio.run(run_bench(endpoint, order, lambda row: click.echo(_said(row), err=True)))
    file = asyncio.run(write_bench(endpoint, order, rows, store, out))
    print(json.dumps(rows) if as_json else f"{table(rows)}\n\nbench: {file}")
    if any(row["failed"] for row in rows):
        sys.exit(1)


def _said(row: dict[str, Any]) -> str:
    load = f"{row['streams']} streams" if "streams" in row else f"{row['rate']:g} requests/s"
    faults = f" ({', '.join(row['errors'])})" if row["errors"] else ""
    return f"{load}: {row['completed']} answered, {row['failed']} failed{faults} in {row['seconds']:.1f} s"


def _numbers(option: str, text: str, whole: bool) -> tuple[float, ...]:
    """Positive numbers separated by commas; none for an empty text."""
    from modelstore import UserError

    try:
        values = tuple((int if whole else float)(part) for part in text.split(",") if part.strip())
        if any(not 0 < value <= MOST for value in values):
            raise ValueError
    except ValueError:
        kind = f"whole numbers from 1 to {MOST}" if whole else f"numbers above 0, up to {MOST},"
        raise UserError(f"{option} {text!r}: {kind} separated by commas are expected.") from None
    return values


def _slo(text: str) -> Slo:
    from clients.bench_figures import Slo
    from modelstore import UserError

    names = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2e": "e2e_s"}
    try:
        parts = dict(part.split("=", 1) for part in text.split(",") if part.strip())
        return Slo(**{names[name.strip()]: float(value) for name, value in parts.items()})
    except (KeyError, ValueError):
        raise UserError(f"--slo {text!r}: ttft=MS, tpot=MS, e2e=S separated by commas are expected.") from None
