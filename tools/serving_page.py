"""The sections of docs/benchmarks.md about serving, from the results in benchmarks/results/. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def serving(results: Path) -> list[str]:
    """A section for each result that there is."""
    sections = {
        "serve-overhead.json": _overhead,
        "against-llama-cpp-server.json": _against,
        "soak.json": _soak,
        "start-to-ready.json": _starts,
        "serve-memory.json": _memory,
    }
    found = [(results / name, section) for name, section in sections.items()]
    return [section(json.loads(path.read_text())) for path, section in found if path.exists()]


def _source(result: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    return (
        f"`{result['command']}`, {result['date']}: {result['model']}, {result['machine']['processors']} processors, "
        f"Python {result['machine']['python']}, {packages}; load average {result['load_before']} when it began."
    )


def _missed(goal: str, reached: bool) -> str:
    return goal if reached else f"{goal} (missed)"


def _overhead(result: dict[str, Any]) -> str:
    lines = []
    for name in ("shared", "apart"):
        for row in result.get(name, {}).get("results", []):
            rate, ttft = row["tokens_per_s_ratio"], row["ttft_ratio"]
            lines.append(
                f"| {name} | {row['concurrency']} | {row['pairs']} | {row['tokens_per_s']['direct']} | "
                f"{_ratio(rate)} | {row['ttft_ms']['direct']:.0f} ms | {_ratio(ttft)} | "
                f"{row['gateway_cpu_s_per_1000']} s | {row['client_cpu_s_per_1000']} s | {_verdict(rate, ttft)} |"
            )
    return f"""## The gateway against the engine behind it

{_source(result)}

The same engine process, asked directly and through the gateway in alternating rounds; medians over pairs, 95%
intervals. "shared": the engine has a thread on every processor, beside client and gateway. "apart": it has one less,
which client and gateway have for themselves. The goal is 2%, reached where both intervals lie within it.

| processors | streams | pairs | tokens/s, direct | through/direct | TTFT, direct | through/direct | gateway's CPU for \
1,000 tokens | the client's | within 2% |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def _verdict(rate: dict[str, float], ttft: dict[str, float]) -> str:
    if rate["low"] >= 0.98 and ttft["high"] <= 1.02:
        return "yes"
    return "no" if rate["high"] < 0.98 or ttft["low"] > 1.02 else "not shown"


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _against(result: dict[str, Any]) -> str:
    servers, ours = result["servers"], result["servers"]["ours"]
    lines = []
    for name, seen in servers.items():
        times = "-" if seen is ours else f"{ours['tokens_per_s'] / seen['tokens_per_s']:.1f}"
        loads = [entry["load"] for entry in seen["rounds"]]
        lines.append(
            f"| {name} | {seen['completed']} of {seen['of']} | {seen['tokens_per_s']} | {times} | "
            f"{min(loads)} to {max(loads)} |"
        )
    theirs = servers["llama_cpp.server"]["tokens_per_s"]
    goal = _missed("4 times as many tokens as it comes", ours["tokens_per_s"] >= 4 * theirs)
    return f"""## Beside `python -m llama_cpp.server`

{_source(result)}

The same file, {result["streams"]} streams at once of up to {result["tokens_of_each"]} tokens, alternating rounds.
Only tokens of streams that ended with a `finish_reason` count. Goal: {goal}, every stream completed.

| server | streams completed | completed tokens/s, median | ours is so many times | load average in the rounds |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def _soak(result: dict[str, Any]) -> str:
    samples = result["memory"]
    shown = [samples[round(part * (len(samples) - 1) / 5)] for part in range(6)]
    lines = [f"| {entry['s'] / 60:.1f} min | {entry['gateway_mb']} | {entry['engines_mb']} |" for entry in shown]
    loads = [entry["load"] for entry in samples]
    failures = sum(result["failures"].values())
    return f"""## Many streams for a long time

{_source(result)}

{result["what"]}, {result["seconds"] / 60:.1f} minutes: {result["requests"]} requests, {failures} failures,
{result["tokens_per_s"]} tokens/s, at a load average of {min(loads)} to {max(loads)}. Memory is PSS; each engine fills
its caches meanwhile, of which the one for prompts may take 256 MiB.

| after | gateway, MB | engines, MB |
|---|---|---|
{chr(10).join(lines)}
"""


def _starts(result: dict[str, Any]) -> str:
    goal = _missed("3 s", result["median_s"] < 3)
    loads = result["load_at_each"]
    return f"""## From the command to ready

{_source(result)}

{len(result["starts_s"])} starts of base and tuned on llama.cpp, each with the hashes of all files, at a load average of
{min(loads)} to {max(loads)}.

| median | least | most | goal |
|---|---|---|---|
| {result["median_s"]} s | {result["least_s"]} s | {result["most_s"]} s | {goal} |
"""


def _memory(result: dict[str, Any]) -> str:
    lines = [
        f"| {row['engine']}, {row['weights']} | {row['engine_processes']} | {row['engines_mb']} | "
        f"{row['gateway_mb']} | {row['start_s']} s at load {row['load']} |"
        for row in result["rows"]
    ]
    return f"""## Memory of base and tuned side by side

{_source(result)}

After both models have answered 64 tokens; PSS of all processes. On a CPU, each vLLM has a key-value cache of 1 GiB at
least. Its processes are its own and their keepers.

| engine | processes | engines, MB | gateway, MB | start to ready |
|---|---|---|---|---|
{chr(10).join(lines)}
"""
