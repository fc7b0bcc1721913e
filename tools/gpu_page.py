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
    return [
        *training(read),
        _smollm2(read["smollm2"], json.loads((results / "demo-seeds-cpu.json").read_text())),
        _dpo(read["dpo"]),
        _conformance(read["llamacpp"], read["vllm"]),
    ]


def _smollm2(result: dict[str, Any], processor: dict[str, Any]) -> str:
    ours, cpu, resumed = result["percent"], processor["percent"], result["resumed"]
    mine, theirs = over_seeds(ours["tuned"]), over_seeds(cpu["tuned"])
    rows = [
        ("strict accuracy, base", _by_seed(ours["base"]), _by_seed(cpu["base"]), "-"),
        ("strict accuracy, tuned, served", _by_seed(ours["tuned"]), _by_seed(cpu["tuned"]), "-"),
        ("its mean", f"{mine:.1f}%", f"{theirs:.1f}%", goal("not below", mine >= theirs)),
        ("interrupted and resumed: largest difference of a loss", str(resumed["largest_difference"]), "-", "0.05"),
        ("training", f"{result['training']['steps']} steps in {result['training']['seconds']:.0f} s", "-", "-"),
        ("from rows to the answered question set", f"{result['seconds']:.0f} s", "-", "-"),
    ]
    return f"""## SmolLM2 through Unsloth

`{result["command"]}`, {result["date"]}, {result["hardware"]["gpu"]}{beside(result)}: the demo's rows, config and
questions with real weights, trained by Unsloth, exported, verified, served by llama.cpp on the GPU and asked, for each
of {len(ours["tuned"])} seeds; and once more, stopped by SIGTERM at step {resumed["interrupted_at_step"]} and continued,
{resumed["compared_steps"]} steps compared. The processor: `{processor["command"]}`, {processor["date"]}, \
{processor["hardware"]["processor"]}{beside(processor)}.

{table(rows, ("what", "GPU", "processor", "goal"))}

The GPU's mean minus the processor's, question by question: {_interval(result["against_cpu"])}.
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


def _short(test: str) -> str:
    return test.split("::")[1]
