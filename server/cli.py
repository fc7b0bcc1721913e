"""The command line of the server: parses and delegates."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serve a run and its base model on one OpenAI-compatible endpoint."""


@main.command()
@click.argument("run", default="current")
@click.option("--store", type=click.Path(path_type=Path), default=Path("models"), show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 opens it to the network: use keys then.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--quantization", help="Which GGUF file; default: the run's own choice.")
@click.option("--slots", type=click.IntRange(1, 256), default=8, show_default=True, help="Streams at once, each model.")
@click.option("--context", type=click.IntRange(128), default=2048, show_default=True, help="Tokens per slot.")
@click.option("--threads", type=click.IntRange(1), help="Default: the processors this container may use.")
@click.option("--gpu-layers", type=click.IntRange(0), default=0, show_default=True, help="Layers on the GPU.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="One 'name key' a line; else TUNESHIP_API_KEY.")
@click.option(
    "--drain-s", type=click.FloatRange(0), default=20.0, show_default=True, help="For running streams at the end."
)
@click.option("--dry-run", is_flag=True, help="Print the engine commands and end.")
def serve(
    run: str,
    store: Path,
    host: str,
    port: int,
    quantization: str | None,
    slots: int,
    context: int,
    threads: int | None,
    gpu_layers: int,
    api_key_file: Path | None,
    drain_s: float,
    dry_run: bool,
) -> None:
    """Serve RUN: a channel, a run id or the beginning of one."""
    import asyncio

    from modelstore import Store
    from server.engine import EngineOptions, cpu_threads
    from server.keys import read_keys
    from server.plan import listen, plan_serving

    options = EngineOptions(slots, context, threads or cpu_threads(), gpu_layers)
    keys = read_keys(api_key_file)
    listener = None if dry_run else listen(host, port)
    plan = plan_serving(Store(store), run, quantization, options)
    if listener is None:
        for engine in plan.engines:
            shown = {name: value for name, value in engine.environment.items() if name != "LLAMA_API_KEY"}
            print(shlex.join([*(f"{name}={value}" for name, value in shown.items()), *engine.argv]))
        return
    from server.serve import serve as run_plan
    from server.supervise import EngineFailed

    try:
        asyncio.run(run_plan(plan, listener, keys, drain_s))
    except EngineFailed as failure:
        click.echo(f"error: {failure}", err=True)
        sys.exit(1)


@main.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--timeout-s", type=click.FloatRange(0), default=120.0, show_default=True)
def wait(url: str, timeout_s: float) -> None:
    """Wait until the server at URL generates tokens; exit code 1 when it does not."""
    from server.wait import wait_until_ready

    why = wait_until_ready(url, timeout_s)
    if why:
        click.echo(f"error: {url} is not ready after {timeout_s:g} s: {why}", err=True)
        sys.exit(1)
