"""The benchmark page's first table: every goal, what was seen, and why it was missed where it was."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.gateway_page import settings, through_direct, verdict
from tools.page_parts import labelled, over_seeds, table

Row = tuple[str, str, str, bool, str]  # what, seen, goal, whether it was reached, why not
ATTENTION, ZEROS = "flash_fprop", "FillFunctor<c10::BFloat16>"


def goals(results: Path) -> str:
    """The section."""
    read = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    rows = [*_training(read), *_packing(read), *_time(read), *_serving(read), *_processor(read)]
    lines = [(what, seen, goal, "-" if reached else f"**missed**: {why}") for what, seen, goal, reached, why in rows]
    missed = sum(not reached for *_, reached, _ in rows)
    return f"""## Goals

{len(rows)} goals, {missed} of them missed. The sections below have the commands, and the rest of what was seen.

{table(lines, ("what", "seen", "goal", "missed, and why"))}
"""


def _training(read: dict[str, Any]) -> list[Row]:
    phi3, plans, plain = read["gpu-phi3"], read["gpu-training-full"]["results"], read["gpu-plain"]
    against, same, ours, wanted = phi3["against_plain"], phi3["against_plain_bf16"], phi3["result"], phi3["goals"]
    fastest = max(plans, key=lambda each: float(each["tokens_per_s"]))
    speeds = {each["variant"]: each["tokens_per_s"] for each in plans}
    profile, speed, theirs = fastest["profile"], fastest["tokens_per_s"], plain["result"]
    products = sum(kernel["ms"] for kernel in profile["kernels"] if "nvjet" in kernel["name"])
    spent = f"matrix products by cuBLAS take {products:.0f} of a step's {profile['kernels_ms_of_a_step']:.0f} ms"
    smollm2, losses = read["gpu-smollm2"], same["largest_loss_difference"]
    points = read["demo-seeds-gpu"]["against"]
    seeds = [read[f"demo-seeds-{name}"]["percent"]["tuned"] for name in ("gpu", "cpu")]
    means = [over_seeds(each) for each in seeds]
    shown = [f"{mean:.1f}% over {len(each)} trainings" for mean, each in zip(means, seeds, strict=True)]
    interval = f"{points['low_points']:+.1f} to {points['high_points']:+.1f}"
    steps_s, export_s = ours["seconds_of_all_steps"], phi3["export_and_verify_s"]
    second = read["gpu-phi3-h200"]
    second_s, second_speedup = second["result"]["seconds_of_all_steps"], second["against_plain"]["speedup"]
    own, slowest = speeds["recipe"] / speeds["recipe-unsloth"], min(against["speedup"], second_speedup)
    return [
        (
            "GPU: the recipe against the plain stack, tokens/s",
            f"{against['speedup']:.2f} times on an {_card(phi3)}, {second_speedup:.2f} on an {_card(second)}",
            f"{wanted['speedup']} times",
            slowest >= wanted["speedup"],
            f"by {1 - slowest / wanted['speedup']:.0%}; a step of the plain stack took "
            f"{theirs['fastest_step_s']:.2f} to {theirs['slowest_step_s']:.2f} s",
        ),
        (
            "its share of that stack's memory",
            f"{against['memory_share']:.3f}",
            str(wanted["memory_share"]),
            against["memory_share"] <= wanted["memory_share"],
            "",
        ),
        (
            "losses at the same precision, largest difference",
            f"{losses:.4f}",
            str(wanted["loss_difference"]),
            losses <= wanted["loss_difference"],
            "the section below has both curves",
        ),
        (
            "200 steps of the recipe",
            f"{steps_s:.0f} s on an {_card(phi3)}, {second_s:.0f} s on an {_card(second)}",
            f"{wanted['steps_s']} s",
            max(steps_s, second_s) < wanted["steps_s"],
            "",
        ),
        (
            "merge, GGUF files, verification",
            f"{export_s:.0f} s",
            f"{wanted['export_s']} s",
            export_s < wanted["export_s"],
            "",
        ),
        ("the recipe against Unsloth's own defaults, tokens/s", f"{own:.2f} times", "1 time", own >= 1, ""),
        ("its peak memory", f"{ours['peak_reserved_gib']:.2f} GiB", "4 GiB", ours["peak_reserved_gib"] <= 4, ""),
        (
            "the fastest plan on full-length rows",
            f"{speed:,.0f} tokens/s",
            "30,000 tokens/s",
            speed >= 30000,
            f"by {1 - speed / 30000:.0%}: {spent}",
        ),
        (
            "SmolLM2 through Unsloth, held-out accuracy",
            shown[0],
            f"the processor's {shown[1]}",
            means[0] >= means[1],
            f"by {-points['difference_points']:.1f} points, in an interval of {interval}",
        ),
        (
            "interrupted and resumed, largest difference of a loss",
            str(smollm2["resumed"]["largest_difference"]),
            "0.05",
            smollm2["resumed"]["largest_difference"] <= 0.05,
            "",
        ),
    ]


def _packing(read: dict[str, Any]) -> list[Row]:
    found = {each["variant"]: each for each in read["gpu-training-chat"]["results"]}
    ratio, wide = (
        found[name]["tokens_per_s"] / found["recipe-padded"]["tokens_per_s"] for name in ("packed", "16bit-packed")
    )
    profile = found["packed"]["profile"]
    calls = sum(kernel["calls"] for kernel in profile["kernels"] if ATTENTION in kernel["name"])
    zeros = sum(kernel["ms"] for kernel in profile["kernels"] if ZEROS in kernel["name"])
    share = f"{zeros:.0f} of {profile['kernels_ms_of_a_step']:.0f} ms of the GPU's time"
    why = f"attention was called {calls} times a step, and filling tensors with zeros took {share}"
    losses = [each["loss"] for each in read["gpu-packed-loss"]["results"]]
    apart = max(losses) - min(losses)
    return [
        (
            "packed rows of chat length against Unsloth's padded ones",
            f"{ratio:.1f} times, {wide:.1f} in 16 bits",
            "3 times",
            ratio >= 3,
            why,
        ),
        ("packed and unpacked, difference of the mean loss", f"{apart:.5f}", "0.001", apart <= 0.001, ""),
    ]


def _time(read: dict[str, Any]) -> list[Row]:
    warm, vllm = read["gpu-warm"], read["vllm-starts"]["starts"]
    stages = list(warm["stages_s"].items())
    lasted = {name: after - at for (name, at), (_, after) in pairwise(stages)}
    imports = sum(each for name, each in lasted.items() if name.startswith("data"))
    export = sum(each for name, each in lasted.items() if name.startswith(("export", "verify", "publish")))
    rest = warm["all_but_the_steps_s"]
    starts = {each["engine_process"]: each["start_s"] for each in vllm}
    start, compiled = (statistics.median(starts[kind]) for kind in ("forked", "forked, with bytecode"))
    off = max(abs(each["off"]) for each in read["plan-gpu"]["results"])
    return [
        (
            "a warm store's training to a served token, without its steps",
            f"{rest:.0f} s",
            f"{warm['goal_s']} s",
            rest < warm["goal_s"],
            f"importing Unsloth took {imports:.0f} s; merge, GGUF files, verification and publication {export:.0f} s",
        ),
        (
            "vLLM's second start, base and tuned",
            f"{compiled:.0f} s with bytecode of what is imported, as the kit's image and pip keep it, {start:.0f} s "
            f"without; medians of {len(starts['forked'])}",
            "40 s",
            compiled < 40,
            "importing takes most of it; the section below has every start",
        ),
        ("predicted peaks on a GPU, largest difference", f"{off:.1%}", "10%", off <= 0.1, ""),
        _whole(read),
    ]


def _whole(read: dict[str, Any]) -> Row:
    result = read["gpu-table"]
    minutes, cards = result["seconds"] / 60, result["cards"]
    return (
        "all of the GPU's tables by one command",
        f"{minutes:.1f} min on {cards} cards without the gateway's rounds, vLLM's starts and the nine seeds",
        "25 min",
        False,
        "those have commands of their own, and with them it was not timed",
    )


def _serving(read: dict[str, Any]) -> list[Row]:
    suites = [read[f"gpu-{name}"]["counts"] for name in ("llamacpp", "vllm")]
    failed = sum(counts["failed"] for counts in suites)
    return [
        (
            "GPU: the endpoint's conformance suite on llama.cpp and vLLM",
            " and ".join(f"{counts['passed']} passed" for counts in suites),
            "all",
            failed == 0,
            f"{failed} failed",
        ),
        *(_through(result) for name, result in sorted(read.items()) if name.startswith("gateway-gpu")),
        *(_alone(read["gateway-latency-gpu"], each) for each in read["gateway-latency-gpu"]["series"][-2:]),
    ]


def _alone(result: dict[str, Any], series: dict[str, Any]) -> Row:
    """A request at a time through the gateway."""
    low, high = series["ratio_interval"]
    return (
        f"{result['gpu'].split()[1]}: llamacpp-BF16, one request at a time, a connection that is "
        f"{series['connections']}: first token through the gateway against the bare engine",
        f"{series['ratio']:.3f} times ({low:.3f} to {high:.3f}), {series['requests']} pairs",
        "2%",
        high <= 1.02,
        f"the median lies {'within' if series['ratio'] <= 1.02 else 'beyond'} it; measured with the gateway of commit "
        f"{series['gateway']}",
    )


def _through(result: dict[str, Any]) -> Row:
    """One engine through the gateway: medians over the rounds."""
    case = labelled(result["cases"][0], result["label"])
    points = sorted({load["streams"] for load in case["loads"]})
    rates, ttfts = (
        [through_direct(case, streams, name) for streams in points] for name in ("output_tokens_per_s", "ttft_ms_p50")
    )
    rate, ttft = ([statistics.median(each) for each in kind] for kind in (rates, ttfts))
    within = sum(tokens >= 0.98 and first <= 1.02 for tokens, first in zip(rate, ttft, strict=True))
    apart = max(_apart(case, streams) for streams in points)
    return (
        f"{result['gpu'].split()[1]}: {case['case']}: through the gateway against the bare engine, "
        f"{', '.join(map(str, points))} streams",
        f"tokens/s {_span(rate)} times, TTFT {_span(ttft)} times; medians of {min(map(len, rates))} rounds or more",
        "2% at every point",
        within == len(points),
        f"{within} of {len(points)} points within it; the bare engine's own windows are up to {apart:.0%} apart; the "
        f"section below has intervals, and docs/serving.md what is known of the cause{_of_gateway(result)}",
    )


def _span(values: list[float]) -> str:
    return " to ".join(dict.fromkeys((f"{min(values):.2f}", f"{max(values):.2f}")))


def _apart(case: dict[str, Any], streams: int) -> float:
    """How much more tokens/s the bare engine's best window has than its worst."""
    rates = [
        load["output_tokens_per_s"] for load in case["loads"] if load["streams"] == streams and load["path"] == "direct"
    ]
    return float(max(rates) / min(rates) - 1)


def _card(result: dict[str, Any]) -> str:
    """H200, of NVIDIA's longer name."""
    return str(result["hardware"]["gpu"].split()[1])


def _of_gateway(result: dict[str, Any]) -> str:
    """Which one was measured, where it is not today's."""
    return f"; {result['gateway']}" if "gateway" in result else ""


def _processor(read: dict[str, Any]) -> list[Row]:
    variants = {each["name"]: each["useful_tokens_per_cpu_s"] for each in read["train-cpu"]["variants"]}
    times, demo = variants["the kit"] / variants["TRL and PEFT, fp32"], read["demo-cpu"]
    servers, starts = read["against-llama-cpp-server"]["servers"], read["start-to-ready"]
    faster = servers["ours"]["tokens_per_s"] / servers["llama_cpp.server"]["tokens_per_s"]
    soak = read["soak"]
    off = max(abs(each["off"]) for each in read["plan-cpu"]["results"])
    return [
        (
            "processor: training against TRL's and PEFT's defaults, tokens per CPU second",
            f"{times:.1f} times",
            "2 times",
            times >= 2,
            "",
        ),
        (
            "processor: `make demo`, warm package cache",
            f"{demo['demo_warm_cache_s']:.0f} s",
            "480 s",
            demo["demo_warm_cache_s"] < 480,
            "",
        ),
        (
            "processor: against llama_cpp.server, 8 streams, completed tokens/s",
            f"{faster:.1f} times",
            "4 times",
            faster >= 4,
            "",
        ),
        ("processor: start to ready, llama.cpp", f"{starts['median_s']} s", "3 s", starts["median_s"] < 3, ""),
        (
            f"processor: {soak['seconds'] / 60:.0f} minutes of many streams",
            f"{sum(soak['failures'].values())} of {soak['requests']} failed",
            "0",
            not sum(soak["failures"].values()),
            "",
        ),
        *(_beside_the_engine(result) for name, result in sorted(read.items()) if name.startswith("serve-overhead")),
        ("processor: predicted peaks, largest difference", f"{off:.1%}", "15%", off <= 0.15, ""),
    ]


def _beside_the_engine(result: dict[str, Any]) -> Row:
    """The gateway on the engine's own processors, in pairs."""
    rows = [row for _, row in settings(result)]
    verdicts = [verdict(row["tokens_per_s_ratio"], row["ttft_ratio"]) for row in rows]
    rates, ttfts = ([row[name]["median"] for row in rows] for name in ("tokens_per_s_ratio", "ttft_ratio"))
    within, beyond = verdicts.count("yes"), verdicts.count("no")
    streams = ", ".join(dict.fromkeys(str(row["concurrency"]) for row in rows))
    return (
        f"processor with {result['label']}: through the gateway against the bare engine, {streams} streams",
        f"medians: tokens/s {min(rates):.3f} to {max(rates):.3f}, TTFT {min(ttfts):.3f} to {max(ttfts):.3f} times; "
        f"{within} of {len(rows)} with their intervals within 2%, {beyond} with one beyond",
        "2%",
        within == len(rows),
        f"the other intervals are wider, or beyond it; the section below has every point{_of_gateway(result)}",
    )
