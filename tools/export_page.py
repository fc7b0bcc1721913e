"""What the benchmark page says of the importance matrix."""

from __future__ import annotations

from typing import Any


def matrix_gain(result: dict[str, Any]) -> str:
    """Each quantization without and with the matrix."""
    sixteen_bit, *files = result["files"]
    pairs = zip(files[::2], files[1::2], strict=True)
    lines = "\n".join(
        f"| {without['quantization']} | {_divergence(without)} | {_divergence(with_it)} "
        f"| {without['same_top']:.1%} | {with_it['same_top']:.1%} | {without['right']} | {with_it['right']} |"
        for without, with_it in pairs
    )
    hardware = result["hardware"]
    return f"""## The importance matrix

`{result["command"]}`, {result["date"]}: {hardware["processor"]}, {hardware["threads"]} threads, llama.cpp
{result["packages"]["llama.cpp"]}; base {result["base"]}, one training of the demo. The matrix took
{result["matrix_s"]} s. Against the run's BF16 file, on {result["questions"]} questions that were never trained, with
their answers: mean KL divergence with its standard error, the share of positions with the same most probable token, and
right answers (BF16: {sixteen_bit["right"]}).

| file | KL, nats | with matrix | same token | with matrix | right | with matrix |
|---|---|---|---|---|---|---|
{lines}

[verification.md](verification.md#the-importance-matrix) says what follows.
"""


def _divergence(row: dict[str, Any]) -> str:
    return f"{row['kl_nats']:.4f} ± {row['kl_error']:.4f}"
