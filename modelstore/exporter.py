"""`python -m modelstore.exporter`: what the store tells about trainings and its disk, for Prometheus."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from modelstore import CHANNELS, Store, exit_cleanly

# key of a line of training.jsonl -> metric and help
FIGURES = {
    "step": ("tuneship_training_step", "Optimizer steps done."),
    "loss": ("tuneship_training_loss", "Mean loss since the line before."),
    "held_out_loss": ("tuneship_training_held_out_loss", "Loss on rows that are not trained."),
    "lr": ("tuneship_training_learning_rate", "Learning rate."),
    "tokens_per_s": ("tuneship_training_tokens_per_second", "Tokens per second since the start."),
    "memory_bytes": ("tuneship_training_memory_bytes", "Most memory so far: resident, or reserved on the GPU."),
}
Sample = tuple[str, str, dict[str, str], float]  # metric, help, labels, value


def metrics(store: Store) -> str:
    """Prometheus text. A store that is empty or half-written gives fewer samples, never an error."""
    heads: set[str] = set()
    lines: list[str] = []
    for name, told, labels, value in sorted(_samples(store), key=lambda sample: sample[0]):
        if name not in heads:
            heads.add(name)
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
        shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
        lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")
    return "".join(line + "\n" for line in lines)


def _samples(store: Store) -> Iterator[Sample]:
    if store.path.is_dir():
        disk = shutil.disk_usage(store.path)
        yield "tuneship_store_bytes", "Size of the store's disk.", {}, disk.total
        yield "tuneship_store_free_bytes", "Free space of the store's disk.", {}, disk.free
    runs = store.runs()
    yield "tuneship_store_runs", "Published runs.", {}, len(runs)
    for channel in CHANNELS:
        if run_id := store.channel(channel):
            yield "tuneship_channel", "The run that a channel names.", {"channel": channel, "run": run_id}, 1
    for log in sorted((store.path / "work").glob("*/training.jsonl")):
        yield from _training(log, log.parent.name, active=True)
    if runs:
        yield from _training(runs[-1].path / "training.jsonl", runs[-1].id, active=False)


def _training(log: Path, run_id: str, active: bool) -> Iterator[Sample]:
    labels = {"run": run_id}
    try:
        changed, figures = log.stat().st_mtime, _last_figures(log)
    except OSError:  # published or removed a moment ago
        return
    yield "tuneship_training_active", "1 for a run that is not published yet.", labels, int(active)
    yield "tuneship_training_changed_seconds", "When the training last said something.", labels, changed
    for key, value in figures.items():
        if key in FIGURES:
            yield FIGURES[key][0], FIGURES[key][1], labels, value


def _last_figures(log: Path) -> dict[str, float]:
    """The newest value of each figure; a line that is being written does not count yet."""
    figures: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue
        figures |= {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
    return figures


def serve(store: Store, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers GET /metrics; the caller runs it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/metrics"
            body = metrics(store).encode() if known else b"the metrics are at /metrics\n"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """A line for every scrape would be noise."""

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Parse and serve until the process ends."""
    parser = argparse.ArgumentParser(prog="python -m modelstore.exporter", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9101)
    arguments = parser.parse_args()
    serve(Store(arguments.store), arguments.host, arguments.port).serve_forever()


if __name__ == "__main__":
    exit_cleanly(main)
