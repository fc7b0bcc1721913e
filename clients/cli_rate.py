"""The command `rate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from clients.cli_options import as_json, store


@click.command()
@click.argument("run", default="current")
@store
@as_json
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="A report.json; default: RUN's newest.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets raters of the network in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
@click.option("--export", "export", is_flag=True, help="Print every rater's ratings as JSONL, models named, and end.")
def rate(run: str, store: Path, as_json: bool, report_path: Path | None, host: str, port: int, export: bool) -> None:
    """Serve a page for blind human rating of base against tuned; the ratings feed the next report."""
    from clients.folders import newest_report
    from clients.rate_server import desk, server
    from clients.ratings import read_ratings, summarise_ratings

    where = desk(report_path or newest_report(store, run))
    if export:
        for rating in read_ratings(where.file):
            print(json.dumps(asdict(rating), ensure_ascii=False))
        return
    if as_json:
        print(json.dumps(summarise_ratings(read_ratings(where.file))))
        return
    listening = server(where, host, port)
    with listening:
        print(f"rate {len(where.pairs)} pairs at http://{host}:{listening.server_port}/ (Ctrl-C ends)", flush=True)
        listening.serve_forever()
