"""The benchmark page's part about GPUs: training, SmolLM2 with its real weights, preferences, conformance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.gpu_training_page import training
from tools.page_parts import beside, goal, over_seeds, table


def gpu(results: Path) -> list[str]:
    """The sections, in order."""
    read = {path.stem[4:]: json.loads(path.read_text()) for path in results.glob("gpu-*.json")}
    seeds = results.glob("demo-seeds-*.json")
    return [
        *training(read),
        _smollm2(read["smollm2"], {path.stem[11:]: json.loads(path.read_text()) for path in seeds}),
        _dpo(read["dpo"]),
        _conformance(read["llamacpp"], read["vllm"]),
        _suite(read["suite"]),
    ]


def _smollm2(stage: dict[str, Any], seeds: dict[str, dict[str, Any]]) -> str:
    """The suite's stage, and as many trainings on the GPU as on the processor."""
    resumed, processor, gpu = stage["resumed"], seeds["cpu"], seeds["gpu"]
    columns = [gpu, seeds["gpu-fp32"], processor]
    means = [over_seeds(each["percent"]["tuned"]) for each in columns]
    shown = [f"{mean:.1f}%" for mean in means]
    rows = [
        ("strict accuracy, base", *(_by_seed(each["percent"]["base"]) for each in columns), "-"),
        ("strict accuracy, tuned, served", *(_by_seed(each["percent"]["tuned"]) for each in columns), "-"),
        ("its mean", *shown, goal("not below", means[0] >= means[2])),
        (
            "minus the processor's, question by question",
            *(_interval(each["against"]) for each in columns[:2]),
            "-",
            "-",
        ),
    ]
    return f"""## SmolLM2 through Unsloth

The demo's rows, config and questions with real weights, trained by Unsloth, exported, verified, served by llama.cpp on
the GPU and asked, for each seed that the processor had: `{gpu["command"]}`, {gpu["date"]}, \
{gpu["hardware"]["gpu"]}{beside(gpu)}. In 32 bits: `{columns[1]["command"]}`{beside(columns[1])}. The processor:
`{processor["command"]}`, {processor["date"]}, {processor["hardware"]["processor"]}{beside(processor)}.

{table(rows, ("what", "GPU, 16 bits", "GPU, 32 bits", "processor", "goal"))}

The suite trains {len(stage["percent"]["tuned"])} seeds (`{stage["command"]}`, {stage["date"]}, \
{stage["hardware"]["gpu"]}{beside(stage)}): {_by_seed(stage["percent"]["tuned"])}, mean \
{over_seeds(stage["percent"]["tuned"]):.1f}%, the processor's mean subtracted {_interval(stage["against_cpu"])};
{stage["training"]["steps"]} steps in {stage["training"]["seconds"]:.0f} s, {stage["seconds"]:.0f} s from rows to the
answered question set. And once more, stopped by SIGTERM at step {resumed["interrupted_at_step"]} and continued:
{resumed["compared_steps"]} steps compared, largest difference of a loss {resumed["largest_difference"]} (goal 0.05).
"""


def _interval(against: dict[str, float]) -> str:
    ends = f"{against['low_points']:+.1f} to {against['high_points']:+.1f}"
    return f"{against['difference_points']:+.1f} points (95% interval {ends})"


def _by_seed(percent: dict[str, float]) -> str:
    return ", ".join(f"{each}%" for each in percent.values())


def _dpo(result: dict[str, Any]) -> str:
    training, last = result["training"], result["last_logged"]
    peak, predicted = (
        each / 2**30 for each in (training["peak_memory_bytes"], training["plan"]["predicted_peak_bytes"])
    )
    return f"""## Preferences on a GPU

`{result["command"]}`, {result["date"]}, {result["hardware"]["gpu"]}: `configs/demo-dpo.toml` through Unsloth,
{training["steps"]} steps in {training["seconds"]:.0f} s, published and verified. Pairs whose chosen answer had become
more probable: {training["reward_accuracy"]:.0%} of the last step's, {last["held_out_reward_accuracy"]:.0%} of those
held out. Peak {peak:.2f} GiB, predicted {predicted:.2f} GiB.
"""


def _conformance(*suites: dict[str, Any]) -> str:
    rows, said = [], []
    for name, suite in zip(("llama.cpp", "vLLM 0.26.0"), suites, strict=True):
        counts = suite["counts"]
        figures = (str(counts["passed"]), str(counts["failed"]), f"{suite['seconds']:.0f} s")
        rows.append((name, suite["hardware"]["gpu"], suite["date"][:10], *figures))
        said += [f"Failed on {name}: {test}." for test in map(_short, suite["failed"])]
    return f"""## The endpoint on a GPU

`python -m tests.gpu.run --stages llamacpp,vllm --out FOLDER --work FOLDER`: the endpoint's conformance suite, with the
openai client, on engines that have all layers on the GPU.

{table(rows, ("engine", "GPU", "date", "passed", "failed", "time"))}

{" ".join(said) or "Nothing failed."}
"""


def _suite(whole: dict[str, Any]) -> str:
    """All stages by one command."""
    rows, missed = [], []
    for name, stage in whole["stages"].items():
        rows.append(
            (name, f"{stage.get('seconds', 0):.0f} s", f"{sum(stage['checks'].values())} of {len(stage['checks'])}")
        )
        missed += [check for check, passed in stage["checks"].items() if not passed]
    phi3 = whole["stages"]["phi3"]
    times, card, minutes = phi3["against_plain"]["speedup"], whole["hardware"]["gpu"], whole["seconds"] / 60
    return f"""## The GPU suite as a whole

`{whole["command"]}`, {whole["date"]}, {whole["cards"]} of {card}: {minutes:.1f} minutes{beside(whole)}. The recipe did
{phi3["tokens_per_s"]["result"]:,.0f} tokens/s, {times} times the plain stack.

{table(rows, ("stage", "time", "checks passed"))}

{"Failed: " + ", ".join(missed) + "." if missed else "Nothing failed."}
"""


def _short(test: str) -> str:
    return test.split("::")[1]
