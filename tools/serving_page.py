"""The sections of docs/benchmarks.md about serving, from the results in benchmarks/results/. Standard library only."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from tools.gateway_page import latency, overhead, real_latency, rounds, slots, threads
from tools.page_parts import cell, goal, labelled, median, source

KINDS = ("gpu", "cpu")


def serving(results: Path) -> list[str]:
    """A section for each result that there is."""
    sections = {
        "vllm-starts.json": _vllm_starts,
        "vllm-waiting.json": _vllm_waiting,
        "gateway-latency.json": latency,
        "gateway-latency-gpu.json": real_latency,
        "against-llama-cpp-server.json": _against,
        "soak.json": _soak,
        "start-to-ready.json": _starts,
        "serve-memory.json": _memory,
    }
    found = [(results / name, section) for name, section in sections.items()]
    served = [
        [json.loads(path.read_text()) for path in sorted(results.glob(f"serving-{kind}*.json"))] for kind in KINDS
    ]
    through, pairs = (
        [json.loads(path.read_text()) for path in sorted(results.glob(pattern))]
        for pattern in ("gateway-gpu*.json", "serve-overhead*.json")
    )
    return [
        *(_engines(several) for several in served if several),
        *([rounds(through)] if through else []),
        *([slots(results)] if (results / "slots-cpu.json").exists() else []),
        *([threads(results)] if (results / "threads-gpu-16.json").exists() else []),
        *([overhead(pairs)] if pairs else []),
        *(section(json.loads(path.read_text())) for path, section in found if path.exists()),
    ]


def _engines(results: list[dict[str, Any]]) -> str:
    """One table from all results of one kind of machine."""
    first, cases = results[0], [labelled(case, result["label"]) for result in results for case in result["cases"]]
    where, memory = ("GPU", "on the card") if first["gpu"] else ("CPU", "PSS")
    starts = " The second start has the cache of the first." if first["gpu"] else ""
    card, but = (f"{first['gpu']}. ", _BUT_ON_A_GPU) if first["gpu"] else ("", _BUT_ON_A_CPU)
    return f"""## Every engine and kind of weights on a {where}

{(2 * chr(10)).join(map(source, results))}

{card}Prompts of {first["prompt_tokens"]} tokens that nobody sent before, answers of
{first["output_tokens"]}; each stream sends its next request when its answer ends. Base and tuned are served side by
side, tuned is asked, through the gateway; the ratio is that of its tokens/s to the bare engine's in a window of its
own. vLLM is started twice.{starts} `serve --for` chooses by this table{but}.

| engine and weights | streams | output tokens/s | through/direct | TTFT, median | 99% | between tokens, median | 99% |
|---|---|---|---|---|---|---|---|
{chr(10).join(line for case in cases for line in _case(case))}

| engine and weights | processes | slots of each | memory ({memory}), MiB | start to ready |
|---|---|---|---|---|
{chr(10).join(map(_start, cases))}

![Tokens a second by streams](plots/serving-{where.lower()}.svg)
"""


_BUT_ON_A_GPU = ", but for rows of another card"
_BUT_ON_A_CPU = """, but for the rows "compiled here" (`make llamacpp`), which
not everybody has. Where an answer takes nearly as long as the window of 80 s, figures are coarse.

The default on a CPU is llama.cpp's package with the run's own quantization, usually Q8_0, although rows here are
faster: it needs no compiler, little memory and a second to start, and vLLM's build for CPUs is a third party's.
Fewer bits gain little with a model of this size"""


def _case(case: dict[str, Any]) -> list[str]:
    """A line for each number of streams; medians over rounds."""
    if "error" in case:
        return [f"| {case['case']} | - | {cell(case['error'])} | | | | | |"]
    lines = []
    for streams in dict.fromkeys(load["streams"] for load in case["loads"]):
        loads = [load for load in case["loads"] if load["streams"] == streams]
        if errors := [load["error"] for load in loads if "error" in load]:
            lines.append(f"| {case['case']} | {streams} | {cell(errors[0][:160])} | | | | | |")
            continue
        if {load["path"] for load in loads} != {"gateway", "direct"}:
            lines.append(f"| {case['case']} | {streams} | not measured through the gateway | | | | | |")
            continue
        rates = [median(loads, path, "output_tokens_per_s") for path in ("gateway", "direct")]
        ratio = f"{rates[0] / rates[1]:.3f}" if rates[1] else "-"
        names = ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")
        times = [f"{median(loads, 'gateway', name):,.1f} ms" for name in names]
        lines.append(f"| {' | '.join([case['case'], str(streams), f'{rates[0]:,.1f}', ratio, *times])} |")
    return lines


def _vllm_starts(result: dict[str, Any]) -> str:
    lines = [
        f"| {each['engine_process']} | {statistics.median(each['start_s']):.1f} s | {_each(each['start_s'], ' s')} | "
        f"{_each(each['import_s'], ' s')} |"
        for each in result["starts"]
    ]
    return f"""## vLLM's start with a warm cache

{source(result)} {result["gpu"]}. The start that filled the caches took {result["first_start_s"]} s.

| its engine's process | to ready, base and tuned, median | each | importing it, by itself |
|---|---|---|---|
{chr(10).join(lines)}
"""


def _vllm_waiting(result: dict[str, Any]) -> str:
    lines = [
        f"| {each['waiting']} | {_each(each['one_tokens_per_s'])} | {_each(each['both_tokens_per_s'])} |"
        for each in result["ways"]
    ]
    return f"""## How vLLM's threads wait on processors

{source(result)}

Base and tuned in processes of their own, merged weights; one stream for each model that is asked,
{result["output_tokens"]} tokens out. Output tokens/s of each start; of both models together in the last column.

| waiting | tuned is asked | tuned and base are asked |
|---|---|---|
{chr(10).join(lines)}
"""


def _each(seen: list[float], unit: str = "") -> str:
    return ", ".join(f"{each:.1f}{unit}" for each in seen)


def _start(case: dict[str, Any]) -> str:
    if "start_s" not in case:
        return f"| {case['case']} | - | - | - | - |"
    first = f"{case['first_start_s']} s, then " if "first_start_s" in case else ""
    sizes = f"{case['processes']} | {case['slots']} | {case['memory_mib']:,}"
    return f"| {case['case']} | {sizes} | {first}{case['start_s']} s |"


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
    reached = goal("4 times as many tokens as it comes", ours["tokens_per_s"] >= 4 * theirs)
    return f"""## Beside `python -m llama_cpp.server`

{source(result)}

The same file, {result["streams"]} streams at once of up to {result["tokens_of_each"]} tokens, alternating rounds.
Only tokens of streams that ended with a `finish_reason` count. Goal: {reached}, every stream completed.

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

{source(result)}

{result["what"]}, {result["seconds"] / 60:.1f} minutes: {result["requests"]} requests, {failures} failures,
{result["tokens_per_s"]} tokens/s, at a load average of {min(loads)} to {max(loads)}. Memory is PSS; each engine
fills its slots' caches meanwhile.

| after | gateway, MB | engines, MB |
|---|---|---|
{chr(10).join(lines)}
"""


def _starts(result: dict[str, Any]) -> str:
    reached = goal("3 s", result["median_s"] < 3)
    loads = result["load_at_each"]
    return f"""## From the command to ready

{source(result)}

{len(result["starts_s"])} starts of base and tuned on llama.cpp, each with the hashes of all files, at a load average of
{min(loads)} to {max(loads)}.

| median | least | most | goal |
|---|---|---|---|
| {result["median_s"]} s | {result["least_s"]} s | {result["most_s"]} s | {reached} |
"""


def _memory(result: dict[str, Any]) -> str:
    lines = [
        f"| {row['engine']}, {row['weights']} | {row['engine_processes']} | {row['engines_mb']} | "
        f"{row['gateway_mb']} | {row['start_s']} s at load {row['load']} |"
        for row in result["rows"]
    ]
    return f"""## Memory of base and tuned side by side

{source(result)}

After both models have answered 64 tokens; PSS of all processes. On a CPU, each vLLM has a key-value cache of 1 GiB at
least. Its processes are its own and their keepers.

| engine | processes | engines, MB | gateway, MB | start to ready |
|---|---|---|---|---|
{chr(10).join(lines)}
"""
