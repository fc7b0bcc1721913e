"""`python -m trainer.accelerator_probe`: does what QLoRA needs of a GPU beyond arithmetic, once, on small tensors.

A Triton kernel is compiled and run, and weights go through bitsandbytes' nf4 and back. One JSON document on stdout:
for each, what was seen, or the problem and what mends it. `--device cpu` tries the 4-bit path on a processor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

ELEMENTS = 1000  # no multiple of the kernel's block, so that its mask is used
NF4_ERROR = 0.15  # of the largest weight of a block; nf4's widest gap between two levels is 0.30


def triton_kernel(device: str) -> str:
    """Raises whatever the compiler raises, or ArithmeticError for wrong sums."""
    import torch

    from trainer.triton_kernel import add

    x = torch.arange(ELEMENTS, dtype=torch.float32, device=device)
    if not torch.equal(add(x, 2 * x), 3 * x):
        raise ArithmeticError("the kernel ran and its sums are wrong")
    return f"compiled, and {ELEMENTS} sums are right"


def four_bits(device: str) -> str:
    """Raises ArithmeticError where nf4 does not give the weights back to its precision."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(1)
    weights = torch.randn(64, 64, dtype=torch.bfloat16).to(device)
    packed, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    back = dequantize_4bit(packed, state).reshape(weights.shape)
    blocks = (weights - back).abs().float().reshape(-1, 64), weights.abs().float().reshape(-1, 64)
    worst = float((blocks[0].amax(dim=1) / blocks[1].amax(dim=1)).max())
    if not worst <= NF4_ERROR * 1.2:  # the scales are quantized too
        raise ArithmeticError(f"weights come back from 4 bits up to {worst:.2f} of their block's largest off")
    return f"weights come back from nf4 at most {worst:.3f} of their block's largest off"


PROBES: dict[str, tuple[Callable[[str], str], str]] = {
    "triton": (triton_kernel, "install a C compiler (gcc) and make the trainer's environment again: make setup"),
    "four_bits": (four_bits, "make the trainer's environment again: rm -r .venv/trainer && make setup"),
}


def probe(device: str, names: tuple[str, ...] = tuple(PROBES)) -> dict[str, dict[str, str]]:
    """Every outcome in words; an import that fails is a problem like any other."""
    found = {}
    for name in names:
        run, remedy = PROBES[name]
        try:
            found[name] = {"problem": "", "seen": run(device), "remedy": ""}
        except Exception as error:  # whatever a compiler or a driver throws is the finding
            text = str(error).strip().splitlines() or [""]
            found[name] = {"problem": f"{type(error).__name__}: {text[-1]}", "seen": "", "remedy": remedy}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.accelerator_probe", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    wish = parser.parse_args()
    outcome: dict[str, Any] = probe(wish.device, tuple(PROBES) if wish.device == "cuda" else ("four_bits",))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
