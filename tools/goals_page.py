"""The benchmark page's first table: every goal, what was seen, and why it was missed where it was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.page_parts import table

Row = tuple[str, str, str, bool, str]  # what, seen, goal, whether it was reached, why not
ATTENTION, SLICES = "flash_fprop", ("FillFunctor<c10::BFloat16>", "CUDAFunctor_add<c10::BFloat16>")


def goals(results: Path) -> str:
    """The section."""
    read = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    rows = [*_training(read), *_packing(read), *_time(read), *_serving(read), *_processor(read)]
    lines = [(what, seen, goal, "-" if reached else f"**missed**: {why}") for what, seen, goal, reached, why in rows]
    missed = sum(not reached for *_, reached, _ in rows)
    return f"""## Goals

{len(rows)} goals, {missed} of them missed. Each is in a section below, with the command that measured it.

{table(lines, ("what", "seen", "goal", "missed, and why"))}
"""


def _training(read: dict[str, Any]) -> list[Row]:
    phi3, plans, plain = read["gpu-phi3"], read["gpu-training-full"]["results"], read["gpu-plain"]
    against, same, ours = phi3["against_plain"], phi3["against_plain_bf16"], phi3["result"]
    fastest = max(plans, key=lambda each: float(each["tokens_per_s"]))
    speeds = {each["variant"]: each["tokens_per_s"] for each in plans}
    profile, speed, other = fastest["profile"], fastest["tokens_per_s"], plain["result"]["timed_steps"]
    products = sum(kernel["ms"] for kernel in profile["kernels"] if "nvjet" in kernel["name"])
    spent = f"matrix products by cuBLAS take {products:.0f} of a step's {profile['kernels_ms_of_a_step']:.0f} ms"
    smollm2, losses = read["gpu-smollm2"], same["largest_loss_difference"]
    points = smollm2["against_cpu"]
    means = [sum(each.values()) / len(each) for each in (smollm2["percent"]["tuned"], smollm2["cpu_percent"]["tuned"])]
    interval = f"{points['low_points']:+.1f} to {points['high_points']:+.1f}"
    steps_s, export_s = ours["seconds_of_all_steps"], phi3["export_and_verify_s"]
    own = speeds["recipe"] / speeds["recipe-unsloth"]
    return [
        (
            "GPU: the recipe against the plain stack, tokens/s",
            f"{against['speedup']:.2f} times",
            "2.4 times",
            against["speedup"] >= 2.4,
            f"by {1 - against['speedup'] / 2.4:.0%}; the plain stack's {other} steps vary by more",
        ),
        (
            "its share of that stack's memory",
            f"{against['memory_share']:.3f}",
            "0.45",
            against["memory_share"] <= 0.45,
            "",
        ),
        (
            "losses at the same precision, largest difference",
            f"{losses:.4f}",
            "0.01",
            losses <= 0.01,
            phi3.get("beside", "the section below has both curves"),
        ),
        ("200 steps of the recipe", f"{steps_s:.0f} s", "240 s", steps_s < 240, ""),
        ("merge, GGUF files, verification", f"{export_s:.0f} s", "240 s", export_s < 240, ""),
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
            f"{means[0]:.1f}%",
            f"the processor's {means[1]:.1f}%",
            means[0] >= means[1],
            f"by {-points['difference_points']:.1f} points, of which the interval ({interval}) does not exclude 0",
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
    slices = sum(kernel["ms"] for kernel in profile["kernels"] if any(name in kernel["name"] for name in SLICES))
    share = f"{slices:.0f} of {profile['kernels_ms_of_a_step']:.0f} ms of the GPU's time"
    why = f"attention was asked for once for every row, {calls} times a step; its slices' gradients took {share}"
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
    warm, merged = read["gpu-warm"], _cases(read, "serving-gpu-vllm-merged")[0]
    stages = list(warm["stages_s"].items())
    lasted = {name: after - at for (name, at), (_, after) in pairwise(stages)}
    imports = sum(each for name, each in lasted.items() if name.startswith("data"))
    export = sum(each for name, each in lasted.items() if name.startswith(("export", "verify", "publish")))
    rest, start = warm["all_but_the_steps_s"], merged["start_s"]
    off = max(abs(each["off"]) for each in read["plan-gpu"]["results"])
    return [
        (
            "a warm store's training to a served token, without its steps",
            f"{rest:.0f} s",
            "120 s",
            rest < 120,
            f"importing Unsloth took {imports:.0f} s; merge, GGUF files, verification and publication {export:.0f} s",
        ),
        (
            "vLLM's second start, base and tuned",
            f"{start:.0f} s",
            "40 s",
            start < 40,
            "two servers start side by side; 20 s pass between the first words of vLLM's two processes",
        ),
        ("predicted peaks on a GPU, largest difference", f"{off:.1%}", "10%", off <= 0.1, ""),
        _whole(read),
    ]


def _whole(read: dict[str, Any]) -> Row:
    result = read["gpu-table"]
    minutes, cards = result["seconds"] / 60, result["cards"]
    why = f"by {minutes - 25:.1f} min; {result.get('beside', 'gpu-table.json has the seconds of each part')}"
    return (
        "`make bench-gpu`, all of the GPU's tables",
        f"{minutes:.1f} min on {cards} cards",
        "25 min",
        minutes < 25,
        why,
    )


def _cases(read: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    return [case for name, result in sorted(read.items()) if name.startswith(prefix) for case in result["cases"]]


def _serving(read: dict[str, Any]) -> list[Row]:
    ratios = []
    for case in _cases(read, "serving-gpu"):
        seen = {(load["path"], load["streams"]): load.get("output_tokens_per_s") for load in case.get("loads", [])}
        pairs = [(rate, seen.get(("direct", streams))) for (path, streams), rate in seen.items() if path == "gateway"]
        ratios += [through / bare for through, bare in pairs if through and bare]
    within = sum(ratio >= 0.98 for ratio in ratios)
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
        (
            "GPU: tokens through the gateway against the bare engine",
            f"{min(ratios):.2f} to {max(ratios):.2f} times; at {within} of {len(ratios)} points 0.98 and more",
            "0.98 at every point",
            within == len(ratios),
            "one short window each, beside other work on the host: they vary by more than the goal, in both directions",
        ),
    ]


def _processor(read: dict[str, Any]) -> list[Row]:
    variants = {each["name"]: each["useful_tokens_per_cpu_s"] for each in read["train-cpu"]["variants"]}
    times, demo = variants["the kit"] / variants["TRL and PEFT, fp32"], read["demo-cpu"]
    servers, starts = read["against-llama-cpp-server"]["servers"], read["start-to-ready"]
    faster = servers["ours"]["tokens_per_s"] / servers["llama_cpp.server"]["tokens_per_s"]
    soak, overhead = read["soak"], read["serve-overhead"]
    shown = [_within(row) for row in overhead["apart"]["results"]]
    beside = [row["tokens_per_s_ratio"]["median"] for row in overhead["shared"]["results"]]
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
        (
            "processor: through the gateway against the bare engine, a processor kept free",
            f"{sum(shown)} of {len(shown)} numbers of streams within 2%",
            "all",
            all(shown),
            f"the others' intervals are wider; without a free one it is {min(beside):.2f} to {max(beside):.2f} times",
        ),
        ("processor: predicted peaks, largest difference", f"{off:.1%}", "15%", off <= 0.15, ""),
    ]


def _within(row: dict[str, Any]) -> bool:
    return bool(row["tokens_per_s_ratio"]["low"] >= 0.98 and row["ttft_ratio"]["high"] <= 1.02)
