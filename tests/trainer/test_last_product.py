"""Blocks that are computed again without their last product, with Unsloth's own kernels in Triton's interpreter. In a
process of its own, because Unsloth changes what else imports transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOCKS = 2


@pytest.mark.skipif(not (find_spec("unsloth") and find_spec("triton")), reason="Unsloth is not in this environment")
@pytest.mark.parametrize(
    ("model", "checkpoints", "products"),
    [
        ("llama", "reentrant", (14, 12)),  # of each block: 3 forward, 3 again, 1 for a gradient
        ("llama", "non-reentrant", (14, 14)),
        ("llama", "none", (8, 8)),
        ("olmo2", "reentrant", (14, 14)),  # a norm behind the product needs its value
    ],
)
def test_it_is_left_out_only_where_no_gradient_changes(
    model: str, checkpoints: str, products: tuple[int, int], tmp_path: Path
) -> None:
    seen = _in_a_process(tmp_path, model, checkpoints)
    assert seen == {"left_out": products[0] != products[1], "products": list(products), "apart": 0.0, "trained": 28}


@pytest.mark.skipif(not (find_spec("unsloth") and find_spec("triton")), reason="Unsloth is not in this environment")
def test_compiled_gradients_overwrite_what_they_are_made_of(tmp_path: Path) -> None:
    seen = _in_a_process(tmp_path, "compiled", "")
    assert seen["apart"] < 1e-6
    assert seen["allocated"] == {"ours": 3, "theirs": 6}  # three products, and the gradients in their place or beside


def _in_a_process(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"UNSLOTH_COMPILE_LOCATION": str(tmp_path), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(kind: str, checkpoints: str) -> dict[str, Any]:
    import unsloth  # noqa: F401  before torch's users
    from unsloth.kernels import fast_lora

    from trainer.backends.last_product import _gradients, leave_last_product_out

    counted, product = [], fast_lora.matmul_lora

    def matmul_lora(*arguments: Any, **more: Any) -> Any:
        counted.append(arguments[1].shape)
        return product(*arguments, **more)

    fast_lora.matmul_lora = matmul_lora
    model = tiny(kind, checkpoints)
    _, before = _gradients(model)
    products = [len(counted)]
    left_out = leave_last_product_out(model)
    counted.clear()
    _, after = _gradients(model)
    products.append(len(counted))
    apart = max(float((before[name] - after[name]).abs().max()) for name in before)
    return {"left_out": left_out, "products": products, "apart": apart, "trained": len(after)}


def compiled() -> dict[str, Any]:
    """The gradients of SwiGLU within a compiled function, against Unsloth's arithmetic for them."""
    import torch
    import unsloth  # noqa: F401  before torch's users
    from torch._inductor.utils import run_and_get_code
    from unsloth.kernels import swiglu

    from trainer.backends.last_product import _in_place

    torch.manual_seed(0)
    given, allocated, found = torch.randn(4, 16, 16).unbind(), {}, {}
    for name, gradients in (("ours", _in_place()), ("theirs", swiglu._DWf_DW_dfg_traced)):
        compiled = torch.compile(lambda x, *each, of=gradients: of(*(x @ one for one in each)), fullgraph=True)
        found[name], code = run_and_get_code(compiled, *given)
        allocated[name] = code[0].count("= empty_strided_cpu(")
    pairs = zip(found["theirs"], found["ours"], strict=True)
    apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    return {"apart": apart, "allocated": allocated}


def tiny(kind: str, checkpoints: str) -> Any:
    """As Unsloth prepares a model for training, in 32 bits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from unsloth.kernels.fast_lora import apply_lora_mlp_swiglu

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 256, "pad_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(kind, num_hidden_layers=BLOCKS, num_attention_heads=4, num_key_value_heads=4, **shape)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules=NAMES))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # begins as zeros
            torch.nn.init.normal_(parameter, std=0.1)
    for block in model.base_model.model.model.layers:
        block.mlp.forward = MethodType(apply_lora_mlp_swiglu, block.mlp)
    model.enable_input_require_grads()
    if checkpoints != "none":
        model.gradient_checkpointing_enable({"use_reentrant": checkpoints == "reentrant"})
    return model.train()


if __name__ == "__main__":
    print(json.dumps(compiled() if sys.argv[1] == "compiled" else main(*sys.argv[1:])))
