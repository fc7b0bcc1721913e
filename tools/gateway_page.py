"""The sections of docs/benchmarks.md about the gateway against the engine behind it. Standard library only."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from tools.page_parts import labelled, median, source


def rounds(results: list[dict[str, Any]]) -> str:
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
                f"{median(loads, 'direct', 'ttft_ms_p50'):.1f} ms | {ttft} |"
            )
    return f"""## The gateway on a GPU, in rounds

{(2 * chr(10)).join(map(source, results))}

The table above has one window for each point. Here each point was measured in rounds, the order of bare engine and
gateway in turn. Windows of the bare engine by themselves differ as the fifth column says. Ratios are medians over
rounds, with the order statistics between which the median lies with 95% or more (of five rounds or fewer: all lie).

| engine and weights | GPU | streams | rounds | tokens/s, direct | through/direct | TTFT, direct | through/direct |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def through_direct(case: dict[str, Any], streams: int, name: str) -> list[float]:
    """A figure through the gateway by that of the bare engine, in each round; empty where one was not measured."""
    seen: dict[str, list[float]] = {"gateway": [], "direct": []}
    for load in case.get("loads", []):
        if load["streams"] == streams:
            seen[load["path"]].append(load.get(name) or 0.0)
    pairs = zip(seen["gateway"], seen["direct"], strict=True)
    return [through / bare for through, bare in pairs if through and bare]


def over_rounds(ratios: list[float]) -> str:
    """Median and its distribution-free interval: the k-th least and greatest, with the largest k of 95% or more."""
    ordered, count = sorted(ratios), len(ratios)
    outside = 0
    while sum(math.comb(count, fewer) for fewer in range(outside + 1)) / 2**count <= 0.025:
        outside += 1
    # k - 1 = `outside` - 1 values lie outside on each side; of five rounds none can
    low, high = ordered[max(0, outside - 1)], ordered[count - max(1, outside)]
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def slots(results: Path) -> str:
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

{(2 * chr(10)).join(map(source, found.values()))}

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
    "slots-gpu-after": "the gateway",
    "slots-cpu": "the gateway",
}


def latency(result: dict[str, Any]) -> str:
    """Of a stub that answers after 10 ms."""
    lines = [
        f"| {each['gateway']} | {each['ttft_ms']['direct']} ms | {each['ttft_ms']['gateway']} ms | "
        f"{each['added_ms']} ms | {each['cpu_ms_of_a_request']} ms |"
        for each in result["series"]
    ]
    return f"""## What the gateway adds to a request

{source(result)}

An engine whose first token comes after 10 ms, asked directly and through the gateway in turn, one connection a
request; medians.

| gateway | TTFT, direct | through | added | gateway's CPU for a request |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def real_latency(result: dict[str, Any]) -> str:
    """Of llama.cpp on a GPU."""
    lines = [
        f"| {each['gateway']} | {each['connections']} | {each['threads']} | {each['ttft_ms']['direct']} ms | "
        f"{each['ttft_ms']['gateway']} ms | {each['ratio']:.3f} ({each['ratio_interval'][0]:.3f} to "
        f"{each['ratio_interval'][1]:.3f}) | {each['cpu_ms_of_a_request']} ms |"
        for each in result["series"]
    ]
    return f"""## What the gateway adds to a request on a GPU

{source(result)} {result["gpu"]}.

llama.cpp asked directly and through the gateway in turn, {result["series"][0]["requests"]} times each, 500 words a
prompt; ratios of medians with 95% bootstrap intervals over pairs. Proxies keep their connections, and clients
that read a stream to its end; openai's client (3.54) ends its own at a stream's [DONE], llama.cpp after every stream.

| gateway of commit | connections | engine's threads | TTFT, direct | through | through/direct | gateway's CPU for a \
request |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def threads(results: Path) -> str:
    """What more threads are to llama.cpp whose layers are all on a GPU."""
    found = [json.loads((results / f"{name}.json").read_text()) for name in THREAD_RESULTS]
    lines = []
    for result in found:
        case = result["cases"][0]
        for streams in dict.fromkeys(load["streams"] for load in case["loads"]):
            loads = [load for load in case["loads"] if load["streams"] == streams]
            for path in ("direct", "gateway"):
                rates = [load["output_tokens_per_s"] for load in loads if load["path"] == path]
                times = [f"{median(loads, path, name):.1f} ms" for name in ("ttft_ms_p50", "itl_ms_p50")]
                rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
                point = [str(each) for each in (case["threads"], streams, path, len(rates))]
                lines.append(f"| {' | '.join([*point, rate, *times])} |")
    return f"""## llama.cpp's threads with all layers on a GPU

{(2 * chr(10)).join(map(source, found))}

Each with an engine of its own; medians over rounds, with the least and the most.

| threads | streams | asked | rounds | tokens/s | TTFT | between tokens |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


THREAD_RESULTS = ("threads-gpu-16", "gateway-gpu-llamacpp-BF16")


def overhead(results: list[dict[str, Any]]) -> str:
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

{(2 * chr(10)).join(map(source, results))}

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
