"""The command line of the trainer: parses and delegates."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

EXIT_FAILED, EXIT_STOPPED = 1, 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Fine-tune a language model on your own questions and answers, prove the result, publish it."""


@main.command()
@click.option("--config", type=click.Path(path_type=Path), default=Path("configs/demo.toml"), show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Replaces data.path of the config.")
@click.option(
    "--questions", type=click.Path(path_type=Path), help="Replaces data.questions: must not occur in the data."
)
@click.option("--store", type=click.Path(path_type=Path), default=Path("models"), show_default=True)
@click.option("--again", is_flag=True, help="Train although a run of the same config and data exists.")
@click.option(
    "--dry-run", is_flag=True, help="Real steps at the longest rows: predicted and seen peak. Publishes nothing."
)
@click.option("--ignore-plan", is_flag=True, help="Train although the predicted memory is not there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; progress stays on stderr.")
def train(
    config: Path,
    data: Path | None,
    questions: Path | None,
    store: Path,
    again: bool,
    dry_run: bool,
    ignore_plan: bool,
    as_json: bool,
) -> None:
    """Data in, published run out. The same command resumes a stopped run."""
    prepare_process()
    from modelstore import Store
    from trainer.across import RanksFailed
    from trainer.config import load_config
    from trainer.divergence import Diverged
    from trainer.finetune import Stopped
    from trainer.gguf_files import ExportError
    from trainer.merge import MergeError
    from trainer.pipeline import Outcome, VerificationFailed
    from trainer.pipeline import train as run_pipeline
    from trainer.progress import Reporter

    parsed = load_config(config, _overrides(data, questions))
    reporter = Reporter()
    if dry_run:
        _dry_run(parsed, Store(store), reporter, as_json)
        return
    try:
        outcome: Outcome = run_pipeline(parsed, Store(store), reporter, _stop_signal(), again, ignore_plan)
    except Stopped as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(EXIT_STOPPED)
    except (Diverged, ExportError, MergeError, RanksFailed, VerificationFailed) as failure:
        click.echo(f"error: {failure}", err=True)
        sys.exit(EXIT_FAILED)
    finally:
        reporter.close()
    _print_outcome(outcome, as_json)


@main.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/demo.toml"))
@click.option("--data", type=click.Path(path_type=Path), help="Replaces data.path of the config.")
@click.option("--store", type=click.Path(path_type=Path), default=Path("models"), show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--model-config", type=click.Path(path_type=Path), help="The base's config.json, where it is not cached.")
@click.option("--fit", metavar="SIZE", help="Propose the fastest plan for this much memory: 24GiB.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def plan(
    config: Path,
    data: Path | None,
    store: Path,
    device: str,
    model_config: Path | None,
    fit: str | None,
    as_json: bool,
) -> None:
    """Memory, disk and time of a training, before anything is downloaded; exit code 1 where it does not fit."""
    prepare_process()
    from trainer import plan_report
    from trainer.config import load_config

    limit = plan_report.parse_size(fit) if fit else None
    parsed = load_config(config, _overrides(data, None))
    report = plan_report.plan_config(parsed, store, device=device, model_config=model_config, limit_bytes=limit)
    proposes = report.limit_bytes is not None and (fit is not None or parsed.training.plan == "fastest")
    fitted = report.planner.fastest_within(report.config, report.limit_bytes or 0) if proposes else None
    if as_json:
        click.echo(json.dumps(plan_report.as_json(report, fitted, proposes)))
    else:
        click.echo("\n".join(plan_report.as_lines(report, fitted, proposes)))
    sys.exit(EXIT_FAILED if (fitted is None if proposes else report.fits is False) else 0)


@main.command()
def config() -> None:
    """Every key of a config with its bounds, default and meaning, as Markdown."""
    from trainer.config_reference import reference

    click.echo(reference(), nl=False)


def _dry_run(config: Any, store: Any, reporter: Any, as_json: bool) -> None:
    from trainer.dry_run import as_line, dry_run

    try:
        found = dry_run(config, store, reporter)
    finally:
        reporter.close()
    print(json.dumps(found) if as_json else as_line(found))


def _overrides(data: Path | None, questions: Path | None) -> dict[str, Any]:
    """Other data means other questions: those of the config belong to the config's data."""
    overrides: dict[str, Any] = {}
    if data:
        overrides = {"data.path": str(data), "data.questions": None}
    if questions:
        overrides["data.questions"] = str(questions)
    return overrides


def prepare_process() -> None:
    """Settings that torch and its OpenMP runtime read once, when they are loaded."""
    from modelstore.machine import cpu_threads

    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_threads()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads on shared cores are ten times slower
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # yet not to spin at all cost a quarter of the speed on quiet ones
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' own, about each other


def _stop_signal() -> Any:
    """SIGTERM and the first SIGINT ask for a checkpoint; a second SIGINT ends at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        click.echo("stopping after a checkpoint (Ctrl-C again stops at once, without one)", err=True)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)


def _print_outcome(outcome: Any, as_json: bool) -> None:
    run = outcome.run
    if as_json:
        print(json.dumps({"run": run.id, "path": str(run.path), "is_new": outcome.is_new}))
        return
    said = "published" if outcome.is_new else "already trained with this config and data (--again trains anew):"
    print(f"{said} {run.id}")
    for check in run.manifest.verification:
        figures = ", ".join(f"{name} {value}" for name, value in check.figures.items())
        print(f"  {'ok' if check.passed else 'FAILED':6} {check.name}: {figures}")
