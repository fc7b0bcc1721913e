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
@click.option("--engine", type=click.Choice(["auto", "llamacpp", "vllm"]), default="auto", show_default=True)
@click.option(
    "--weights",
    type=click.Choice(["gguf", "merged", "adapter"]),
    help="Default: gguf for llama.cpp, merged for vLLM. adapter: base and tuned share one vLLM.",
)
@click.option("--quantization", help="Which GGUF file; default: the run's own choice.")
@click.option("--slots", type=click.IntRange(1, 256), help="Streams at once, each model. Default: by the machine.")
@click.option(
    "--for",
    "goal",
    type=click.Choice(["latency", "throughput"]),
    help="Engine, weights and slots that were measured to be best for it, as far as the other options leave them open.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    help="How many there will be at once, for --for. Default: 1 for latency, 64 for throughput.",
)
@click.option("--context", type=click.IntRange(128), default=2048, show_default=True, help="Tokens per slot.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Default: the processors this container may use; 1 where llama.cpp gets all layers on a GPU.",
)
@click.option(
    "--gpu-layers", type=click.IntRange(0), help="llama.cpp's layers on the GPU. Default: all, if it has one."
)
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="One 'name key [limits]' a line; else TUNESHIP_API_KEY."
)
@click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path),
    help="Serve only runs that somebody in this file signed; as ssh-keygen(1) describes it.",
)
@click.option(
    "--drain-s", type=click.FloatRange(0), default=20.0, show_default=True, help="For running streams at the end."
)
@click.option("--dry-run", is_flag=True, help="Print the engine commands and end.")
def serve(
    run: str,
    store: Path,
    host: str,
    port: int,
    engine: str,
    weights: str | None,
    quantization: str | None,
    slots: int | None,
    goal: str | None,
    streams: int | None,
    context: int,
    threads: int | None,
    gpu_layers: int | None,
    api_key_file: Path | None,
    allowed_signers: Path | None,
    drain_s: float,
    dry_run: bool,
) -> None:
    """Serve RUN: a channel, which is followed, or a run id or the beginning of one."""

    from modelstore import CHANNELS, Store, UserError
    from server.choose import Asked, choose
    from server.keys import KeyRing
    from server.plan import listen, plan_serving
    from server.purpose import STREAMS, Purpose

    if streams and not goal:
        raise UserError("--streams is for --for latency or --for throughput; --slots takes a number as it is.")
    purpose = Purpose(goal, streams or STREAMS[goal]) if goal else None
    keys = KeyRing(api_key_file)
    listener = None if dry_run else listen(host, port)
    models = Store(store)
    asked = Asked(engine, weights, quantization, slots, context, threads, gpu_layers, allowed_signers, purpose)
    wish, reasons = choose(asked, models, run, follows=run in CHANNELS)
    click.echo("\n".join(reasons), err=True)
    plan = plan_serving(models, run, wish)
    if listener is None:
        for entry in plan.engines:
            click.echo(shown_command(entry.argv, entry.environment))
        return
    import uvloop

    from server.serve import Followed
    from server.serve import serve as run_plan
    from server.supervise import EngineFailed

    followed = Followed(models, run, lambda run_id: plan_serving(models, run_id, wish)) if run in CHANNELS else None
    try:
        uvloop.run(run_plan(plan, listener, keys, drain_s, followed))
    except EngineFailed as failure:
        click.echo(f"error: {failure}", err=True)
        sys.exit(1)


def shown_command(argv: list[str], environment: dict[str, str]) -> str:
    """A line for a shell; the engine's key, made anew at each start, is left out."""
    settings = [f"{name}={value}" for name, value in environment.items() if not name.endswith("_API_KEY")]
    return shlex.join([*settings, *argv])


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
