"""The sections of docs/benchmarks.md about serving, from the results in benchmarks/results/. Standard library only."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from tools.page_parts import beside

KINDS = ("gpu", "cpu")


def serving(results: Path) -> list[str]:
    """A section for each result that there is."""
    sections = {
        "vllm-starts.json": _vllm_starts,
        "vllm-waiting.json": _vllm_waiting,
        "gateway-latency.json": _latency,
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
        *([_rounds(through)] if through else []),
        *([_slots(results)] if (results / "slots-cpu.json").exists() else []),
        *([_overhead(pairs)] if pairs else []),
        *(section(json.loads(path.read_text())) for path, section in found if path.exists()),
    ]


def _source(result: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    return (
        f"`{result['command']}`, {result['date']}: {result['model']}, {result['machine']['processors']} processors, "
        f"Python {result['machine']['python']}, {packages}; load average {result['load_before']} when it "
        f"began{beside(result)}."
    )


def _missed(goal: str, reached: bool) -> str:
    return goal if reached else f"{goal} (missed)"


def _engines(results: list[dict[str, Any]]) -> str:
    """One table from all results of one kind of machine."""
    first, cases = results[0], [labelled(case, result["label"]) for result in results for case in result["cases"]]
    where, memory = ("GPU", "on the card") if first["gpu"] else ("CPU", "PSS")
    starts = " The second start has the cache of the first." if first["gpu"] else ""
    card, but = (f"{first['gpu']}. ", _BUT_ON_A_GPU) if first["gpu"] else ("", _BUT_ON_A_CPU)
    return f"""## Every engine and kind of weights on a {where}

{(2 * chr(10)).join(map(_source, results))}

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


def labelled(case: dict[str, Any], label: str) -> dict[str, Any]:
    """The case with what sets it apart in its name."""
    return {**case, "case": f"{case['case']}, {label}"} if label else case


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
        rates = [_median(loads, path, "output_tokens_per_s") for path in ("gateway", "direct")]
        ratio = f"{rates[0] / rates[1]:.3f}" if rates[1] else "-"
        names = ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")
        times = [f"{_median(loads, 'gateway', name):,.1f} ms" for name in names]
        lines.append(f"| {' | '.join([case['case'], str(streams), f'{rates[0]:,.1f}', ratio, *times])} |")
    return lines


def _median(loads: list[dict[str, Any]], path: str, name: str) -> float:
    return statistics.median(load[name] or 0.0 for load in loads if load["path"] == path)


def through_direct(case: dict[str, Any], streams: int, name: str) -> list[float]:
    """A figure through the gateway by that of the bare engine, in each round; empty where one was not measured."""
    seen: dict[str, list[float]] = {"gateway": [], "direct": []}
    for load in case.get("loads", []):
        if load["streams"] == streams:
            seen[load["path"]].append(load.get(name) or 0.0)
    pairs = zip(seen["gateway"], seen["direct"], strict=True)
    return [through / bare for through, bare in pairs if through and bare]


def _rounds(results: list[dict[str, Any]]) -> str:
    """The gateway on a GPU, in rounds."""
    lines = []
    for gpu, case in ((each["gpu"], labelled(case, each["label"])) for each in results for case in each["cases"]):
        for streams in dict.fromkeys(load["streams"] for load in case["loads"]):
            rate, ttft = (
                over_rounds(through_direct(case, streams, name)) for name in ("output_tokens_per_s", "ttft_ms_p50")
            )
            loads = [load for load in case["loads"] if load["streams"] == streams]
            bare = [load["output_tokens_per_s"] for load in loads if load["path"] == "direct"]
            lines.append(
                f"| {case['case']} | {gpu} | {streams} | {len(bare)} | {min(bare):,.0f} to {max(bare):,.0f} | {rate} | "
                f"{_median(loads, 'direct', 'ttft_ms_p50'):.1f} ms | {ttft} |"
            )
    return f"""## The gateway on a GPU, in rounds

{(2 * chr(10)).join(map(_source, results))}

The table above has one window for each point. Here each point was measured in rounds, the order of bare engine and
gateway in turn. Windows of the bare engine by themselves differ as the fifth column says. Ratios are medians over
rounds, with the order statistics between which the median lies with 95% or more (of five rounds or fewer: all lie).

| engine and weights | GPU | streams | rounds | tokens/s, direct | through/direct | TTFT, direct | through/direct |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def over_rounds(ratios: list[float]) -> str:
    """Median and its distribution-free interval: the k-th least and greatest, with the largest k of 95% or more."""
    ordered, count = sorted(ratios), len(ratios)
    outside = 0
    while sum(math.comb(count, fewer) for fewer in range(outside + 1)) / 2**count <= 0.025:
        outside += 1
    # k - 1 = `outside` - 1 values lie outside on each side; of five rounds none can
    low, high = ordered[max(0, outside - 1)], ordered[count - max(1, outside)]
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def _slots(results: Path) -> str:
    """What becomes of llama.cpp while it serves fewer streams than it has slots."""
    found = {name: json.loads((results / f"{name}.json").read_text()) for name in SLOT_RESULTS}
    lines = []
    for result, gateway in zip(found.values(), SLOT_RESULTS.values(), strict=True):
        case = result["cases"][0]
        streams = case["loads"][0]["streams"]
        where = f"{case['case']}, {result['gpu'] or 'a processor'}, {streams} streams, {case['slots']} slots"
        for path in ("direct", "gateway"):
            rates = [load["output_tokens_per_s"] for load in case["loads"] if load["path"] == path]
            third = len(rates) // 3
            first, last = statistics.median(rates[:third]), statistics.median(rates[-third:])
            lines.append(
                f"| {where} | {gateway if path == 'gateway' else 'the bare engine'} | {len(rates)} | "
                f"{statistics.median(rates):,.1f} | {first:,.1f} | {last:,.1f} | {last / first:.2f} |"
            )
    return f"""## llama.cpp with fewer streams than slots

{(2 * chr(10)).join(map(_source, found.values()))}

llama.cpp computes slots together whose numbers follow each other; left alone it takes the slot that was idle longest.
Windows of a server in the order in which they came; medians of all, of their first and of their last third. On a GPU
the bare engine and the gateway had their windows in turn with one engine, so that what one scattered or kept together
met the other too; on processors (--apart) each had a server to itself.

| engine, machine, load | asked | windows | tokens/s | in the first third | in the last | times |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


SLOT_RESULTS = {
    "slots-gpu-before": "the gateway before it chose slots",
    "gateway-gpu-llamacpp-BF16-paused-8": "the gateway",
    "slots-cpu": "the gateway",
}


def _vllm_starts(result: dict[str, Any]) -> str:
    lines = [
        f"| {each['engine_process']} | {statistics.median(each['start_s']):.1f} s | {_each(each['start_s'], ' s')} | "
        f"{_each(each['import_s'], ' s')} |"
        for each in result["starts"]
    ]
    return f"""## vLLM's start with a warm cache

{_source(result)} {result["gpu"]}. The start that filled the caches took {result["first_start_s"]} s.

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

{_source(result)}

Base and tuned in processes of their own, merged weights; one stream for each model that is asked,
{result["output_tokens"]} tokens out. Output tokens/s of each start; of both models together in the last column.

| waiting | tuned is asked | tuned and base are asked |
|---|---|---|
{chr(10).join(lines)}
"""


def _each(seen: list[float], unit: str = "") -> str:
    return ", ".join(f"{each:.1f}{unit}" for each in seen)


def _latency(result: dict[str, Any]) -> str:
    lines = [
        f"| {each['gateway']} | {each['ttft_ms']['direct']} ms | {each['ttft_ms']['gateway']} ms | "
        f"{each['added_ms']} ms | {each['cpu_ms_of_a_request']} ms |"
        for each in result["series"]
    ]
    return f"""## What the gateway adds to a request

{_source(result)}

An engine whose first token comes after 10 ms, asked directly and through the gateway in turn, one connection a
request; medians.

| gateway | TTFT, direct | through | added | gateway's CPU for a request |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def _start(case: dict[str, Any]) -> str:
    if "start_s" not in case:
        return f"| {case['case']} | - | - | - | - |"
    first = f"{case['first_start_s']} s, then " if "first_start_s" in case else ""
    sizes = f"{case['processes']} | {case['slots']} | {case['memory_mib']:,}"
    return f"| {case['case']} | {sizes} | {first}{case['start_s']} s |"


def cell(text: str) -> str:
    """As the text of one field of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _overhead(results: list[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        for name, row in settings(result):
            rate, ttft = row["tokens_per_s_ratio"], row["ttft_ratio"]
            lines.append(
                f"| {name}, {result['label']} | {row['concurrency']} | {row['pairs']} | "
                f"{row['tokens_per_s']['direct']} | {_ratio(rate)} | {row['ttft_ms']['direct']:.0f} ms | "
                f"{_ratio(ttft)} | {row['gateway_cpu_s_per_1000']} s | {row['client_cpu_s_per_1000']} s | "
                f"{verdict(rate, ttft)} |"
            )
    return f"""## The gateway against the engine behind it

{(2 * chr(10)).join(map(_source, results))}

The same engine process, asked directly and through the gateway in alternating rounds; medians over pairs, 95%
intervals. "shared": the engine has a thread on every processor, beside client and gateway. "apart": it has one less,
which client and gateway have for themselves. The goal is 2%, reached where both intervals lie within it.

| processors | streams | pairs | tokens/s, direct | through/direct | TTFT, direct | through/direct | gateway's CPU for \
1,000 tokens | the client's | within 2% |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def settings(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each point, by whether the processors were shared; one processor alone has nothing apart."""
    return [(name, row) for name in ("shared", "apart") if name in result for row in result[name]["results"]]


def verdict(rate: dict[str, float], ttft: dict[str, float]) -> str:
    """Of two intervals through/direct: whether they lie within 2%, or one beyond."""
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
