"""The benchmark page's part about training on GPUs: against the plain stack, plans, two cards, short rows."""

from __future__ import annotations

from typing import Any

from tools.page_parts import beside, goal, table

CUT = 60  # letters at which the suite cuts the name of a stage
NAMED, TOP = 25, 8  # kernels: in each profile of benchmarks/train_gpu.py, on the page
CLASSES = {"matrix products": "nvjet", "attention": "sdpa", "copies": "Memcpy", "dequantization": "dequant"}
NAMES = {
    "recipe": "the recipe: 4-bit weights, offloaded checkpoints",
    "recipe-whole": "the recipe, blocks computed again as a whole",
    "recipe-bucketed": "the recipe, attention at the next of a few lengths",
    "recipe-waiting": "the recipe, a wait after each tensor's update",
    "recipe-unsloth": "the recipe, with Unsloth's defaults",
    "two": "the recipe",
    "two-16bit": "16-bit weights, nothing recomputed",
    "16bit": "16-bit weights, nothing recomputed",
    "16bit-wide-fused": "the same, AdamW in one kernel, all eight rows in one pass, no loss logged",
    "plain": "plain stack, padded",
    "recipe-padded": "Unsloth, 4-bit, offloaded checkpoints, padded",
    "packed": "the kit with packing, 4-bit, offloaded checkpoints",
    "packed-by-rows": "the same, attention once for every row",
    "16bit-packed": "the kit with packing, 16-bit, nothing recomputed",
}


def training(read: dict[str, dict[str, Any]]) -> list[str]:
    """The sections, in order, of the results by their names."""
    return [
        _phi3(read["plain"], read["phi3"], read["phi3-h200"], read["warm"]),
        _variants(read["training-full"], read["plain-h200"]["result"]),
        _two(read["training-two"], read["training-full"]),
        _chat(read["training-chat"], read["packed-loss"]),
    ]


def _phi3(plain: dict[str, Any], suite: dict[str, Any], second: dict[str, Any], warm: dict[str, Any]) -> str:
    ours, article, wanted = suite["result"], suite["article"], suite["goals"]
    rows = [("the recipe", *_speed_and_peak(ours), "-", "-", "-")]
    for name, theirs, key in (
        ("plain stack as peft's guide prepares it: a 32-bit residual stream", "result", "against_plain"),
        ("plain stack, 16-bit residual stream as the kit's", "bf16", "against_plain_bf16"),
    ):
        against = suite[key]
        figures = (f"{against['speedup']:.2f}", f"{against['memory_share']:.3f}")
        rows.append((name, *_speed_and_peak(plain[theirs]), *figures, f"{against['largest_loss_difference']:.4f}"))
    first, same = suite["against_plain"], suite["against_plain_bf16"]
    steps_s, export_s = ours["seconds_of_all_steps"], suite["export_and_verify_s"]
    files = sum(artifact["kind"] == "gguf" for artifact in suite["artifacts"])
    goals = [
        (
            "times the speed of the first plain stack",
            f"{first['speedup']:.2f}",
            goal("2.4", first["speedup"] >= wanted["speedup"]),
        ),
        (
            "share of its memory",
            f"{first['memory_share']:.3f}",
            goal("0.45", first["memory_share"] <= wanted["memory_share"]),
        ),
        (
            "losses, at the same precision: largest difference in 15 steps",
            f"{same['largest_loss_difference']:.4f}",
            goal("0.01", same["largest_loss_difference"] <= wanted["loss_difference"]),
        ),
        ("200 steps, compilation included", f"{steps_s:.0f} s", goal("240 s", steps_s < wanted["steps_s"])),
        ("the article's 200 steps, RTX 4090", f"{article['seconds_of_200_steps']} s", "-"),
        (f"merge, {files} GGUF files, verification", f"{export_s:.0f} s", goal("240 s", export_s < wanted["export_s"])),
        ("the article's peaks, RTX 4090, real weights", _peaks(article), "-"),
    ]
    head = ("stack", "tokens/s", "peak memory reserved", "times as fast", "share of memory", "losses apart, at most")
    return f"""## Training on a GPU

`{suite["command"]}`, {suite["date"]}, {suite["hardware"]["gpu"]}, torch {suite["packages"]["torch"]}, unsloth
{suite["packages"]["unsloth"]}{beside(suite)}. Phi-3-mini's architecture with random weights, the article's recipe on
rows that fill 2048 tokens, and the same rows through transformers, bitsandbytes, peft and trl, where adapters began
with the same values and learning rates were the same{beside(plain)}. Speeds are medians without the first five steps:
the kit's over the {ours["steps"] - 5} steps of a sustained training, the plain stack's over \
{plain["result"]["timed_steps"]} of a short one. The base model's GGUF files were made beside the training.
"Times as fast" and the next column are the kit's against that line's.

{table(rows, head)}

peft's `prepare_model_for_kbit_training` makes embeddings and norms 32-bit, and with them all that flows between blocks.
It costs time and memory.

{table(goals, ("what", "seen", "goal"))}

![Losses of the first 15 steps](plots/gpu-losses.svg)

Seconds since the command, by what began then:

{table(_stages(suite["stages_s"]), ("what", "at"))}

`{second["command"]}` on an {second["hardware"]["gpu"]}, {second["date"]}{beside(second)}:
{second["result"]["tokens_per_s"]:,.0f} tokens/s,
{second["against_plain"]["speedup"]:.2f} and {second["against_plain_bf16"]["speedup"]:.2f} times the plain stacks at
{second["against_plain"]["memory_share"]:.3f} and {second["against_plain_bf16"]["memory_share"]:.3f} of their memory.
The 200 steps took {second["result"]["seconds_of_all_steps"]:.0f} s; merge, GGUF files and verification
{second["export_and_verify_s"]:.0f} s.

{_warm(warm)}"""


def _speed_and_peak(result: dict[str, Any]) -> tuple[str, str]:
    return f"{result['tokens_per_s']:,.0f}", f"{result['peak_reserved_gib']:.2f} GiB"


def _warm(warm: dict[str, Any]) -> str:
    """The second training in a store."""
    rest, limit = warm["all_but_the_steps_s"], warm["goal_s"]
    reached = goal(f"{limit} s", rest < limit)
    return f"""`{warm["command"]}`, {warm["hardware"]["gpu"]}:
{warm["steps"]} steps more in that run's store, where the base is known,
compiled code is in the cache, and the base model's GGUF files lie ready. From the command to a served token
{rest:.0f} s without the steps (goal: {reached}), {warm["server_start_s"]:.0f} s of it
until llama.cpp was ready:

{table(_stages(warm["stages_s"]), ("what", "at"))}
"""


def _peaks(article: dict[str, Any]) -> str:
    return f"{article['peak_memory_gb']} GB, {article['peak_memory_without_unsloth_gb']:.0f} GB without Unsloth"


def _stages(stages: dict[str, float]) -> list[tuple[str, ...]]:
    whole = ((name if len(name) < CUT else name.rpartition(",")[0], at) for name, at in stages.items())
    return [(name, f"{at:.0f} s") for name, at in whole]


def _variants(result: dict[str, Any], plain: dict[str, Any]) -> str:
    rows, kernels, first = [], [], result["results"][0]["losses"]
    for each in result["results"]:
        logged = len(each["losses"]) == len(first)
        is_fast, speed = each["variant"].startswith("16bit"), each["tokens_per_s"]
        rows.append(
            (
                NAMES[each["variant"]],
                f"{speed:,.0f}",
                f"{speed / plain['tokens_per_s']:.2f}",
                f"{each['peak_reserved_gib']:.2f} GiB",
                f"{max(abs(a - b) for a, b in zip(each['losses'], first, strict=True)):.4f}"
                if logged
                else "not logged",
                goal("30,000 tokens/s", speed >= 30000) if is_fast else "-",
            )
        )
        if "profile" in each:
            kernels.append((NAMES[each["variant"]], *_classes(each["profile"]), *_walls(each)))
    fastest = max(result["results"], key=lambda each: float(each["tokens_per_s"]))
    top = [(f"`{kernel['name'][:60]}`", f"{kernel['ms']:.1f}") for kernel in fastest["profile"]["kernels"][:TOP]]
    return f"""## Plans on full-length rows

`{result["command"]}`, {result["date"]}, {result["hardware"]["gpu"]}{beside(result)}. 15 steps each, the first five
not counted; the plain stack is this card's of the section above.

{table(rows, ("plan", "tokens/s", "times the plain stack", "peak memory", "losses from the recipe's, at most", "goal"))}

Losses of plans with 16-bit weights are those of another base: the recipe's is rounded to 4 bits.

![Tokens a second by plan](plots/gpu-training.svg)

{_fastest(fastest["tokens_per_s"])} Where the GPU's time of a step goes, in ms,
by the profiler, which makes steps longer. Copies run beside the rest. The profile names its {NAMED} longest kernels;
"not named" is the time of all others, of any class:

{table(kernels, ("plan", *CLASSES, "other named", "not named", "sum", "step with profiler", "step without"))}

The longest kernels of the fastest plan, ms of a step:

{table(top, ("kernel", "ms"))}

Matrix products take most of it, and they are cuBLAS's: what is left to gain is the rest, in kernels that are Unsloth's
and PyTorch's.
"""


def _fastest(speed: float) -> str:
    return (
        "The fastest reaches the goal."
        if speed >= 30000
        else f"The fastest misses the goal by {1 - speed / 30000:.0%}."
    )


def _classes(profile: dict[str, Any]) -> tuple[str, ...]:
    spent = {
        name: sum(kernel["ms"] for kernel in profile["kernels"] if word in kernel["name"])
        for name, word in CLASSES.items()
    }
    whole, unnamed = profile["kernels_ms_of_a_step"], profile["other_kernels_ms"]
    parts = [*spent.values(), whole - unnamed - sum(spent.values()), unnamed, whole]
    return tuple(f"{ms:.0f}" for ms in parts)


def _walls(result: dict[str, Any]) -> tuple[str, ...]:
    return f"{result['profile']['wall_ms_of_a_step']:.0f}", f"{1e3 * result['seconds_per_step']:.0f}"


def _two(result: dict[str, Any], alone: dict[str, Any]) -> str:
    single = {each["variant"]: each for each in alone["results"]}
    rows = []
    for each in result["results"]:
        one = single[each["variant"].replace("two-", "").replace("two", "recipe")]
        pairs = list(zip(each["losses"], one["losses"], strict=False))
        alike = len(each["losses"]) == len(one["losses"])  # else they had other rows
        rows.append(
            (
                NAMES[each["variant"]],
                f"{each['tokens_per_s']:,.0f}",
                f"{each['tokens_per_s'] / one['tokens_per_s']:.2f}",
                f"{each['peak_reserved_gib']:.2f} GiB",
                f"{max(abs(a - b) for a, b in pairs):.4f}" if alike else "other rows",
            )
        )
    head = ("plan", "tokens/s", "times one card", "peak memory of the first card", "losses apart, at most")
    return f"""## Two GPUs

`{result["command"]}`, {result["date"]}, two {result["hardware"]["gpu"]}{beside(result)}: `processes = 2`, the same
rows in every step, 15 steps, the first five not counted; against one card in the section above.

{table(rows, head)}
"""


def _chat(result: dict[str, Any], losses: dict[str, Any]) -> str:
    speeds = {each["variant"]: each["tokens_per_s"] for each in result["results"]}
    rows = [
        (
            NAMES[each["variant"]],
            f"{each['tokens_per_s']:,.0f}",
            f"{each['tokens_per_s'] / speeds['plain']:.1f}",
            f"{each['tokens_per_s'] / speeds['recipe-padded']:.2f}",
            f"{each['peak_reserved_gib']:.2f} GiB",
        )
        for each in result["results"]
    ]
    ratio, packing = (speeds[name] / speeds["recipe-padded"] for name in ("16bit-packed", "packed"))
    kinds = {"16bit-padded": "padded", "16bit-padding-free": "padding-free", "16bit-packed": "packed"}
    same = [(kinds[each["variant"]], f"{each['tokens']:,}", f"{each['loss']:.5f}") for each in losses["results"]]
    head = ("plan", "useful tokens/s", "times the plain stack", "times Unsloth's padded", "peak memory")
    return f"""## Rows of chat length

`{result["command"]}`, {result["date"]}, {result["hardware"]["gpu"]}{beside(result)}. Lengths are log-normal with a
median of 300 tokens, cut at 2048; only tokens of rows count, no padding. Packing against Unsloth's padded batches:
{packing:.1f} times with the same weights and checkpoints (goal: {goal("3", packing >= 3)}), {ratio:.1f} times with
16-bit weights and nothing recomputed.

{table(rows, head)}

![Useful tokens a second on rows of chat length](plots/gpu-chat-rows.svg)

The loss with and without packing: `{losses["command"]}`, {losses["hardware"]["gpu"]}, SmolLM2-135M with its
real weights and an adapter that is not trained, 16 bits, the same {losses["rows"]} rows of random words (goal: within
0.001). Trainings with and without packing
were not compared, and that the three took different code was not recorded.

{table(same, ("batches", "predicted tokens", "mean loss of a token"))}
"""
