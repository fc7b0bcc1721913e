"""A checkpointed block that is computed again leaves its last product out: no gradient needs the value of it.

With checkpointing, a block's backward pass computes the block once more, for what its parts need to know of their own
inputs. The MLP's down projection ends the block, so its result is nobody's input there, and it is 22% of the products
of a Phi-3 block. PyTorch's non-reentrant checkpointing stops early for the same reason
(`torch.utils.checkpoint.set_checkpoint_early_stop`); Unsloth's is of the reentrant kind and does not.

Only for blocks with Unsloth's fused SwiGLU and LoRA, and only where loss and gradients of a few tokens stay the same.
"""

from __future__ import annotations

import functools
import os
import sys
from contextlib import suppress
from types import MethodType
from typing import Any

TOKENS = 64
TOLERANCE = 0.02  # of a tensor's largest gradient: bf16 and the order of sums, not another result


def leave_last_product_out(model: Any) -> bool:
    """Change the blocks of a model with Unsloth's adapter and checkpointing; whether it was done."""
    from unsloth.kernels.fast_lora import apply_lora_mlp_swiglu

    forwards = ((module, vars(module).get("forward")) for module in model.modules())
    mlps = [module for module, forward in forwards if getattr(forward, "__func__", None) is apply_lora_mlp_swiglu]
    if not mlps:
        return False
    try:
        whole, forward = _gradients(model), _forward()
        for mlp in mlps:
            mlp.forward = MethodType(forward, mlp)
        if _same(whole, _gradients(model)):
            return True
    except Exception as error:  # a model that this was not made for: it trains as Unsloth has it
        print(f"blocks are computed again as a whole: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        _forget_trial(model)
    for mlp in mlps:
        mlp.forward = MethodType(apply_lora_mlp_swiglu, mlp)
    return False


def _forward() -> Any:
    """Of an MLP. With gradients on, a checkpointed block is being computed again."""
    import torch
    from unsloth.kernels import fast_lora, swiglu
    from unsloth.kernels.utils import get_lora_parameters

    function, kernels = _function(), (swiglu.swiglu_fg_kernel, _in_place())

    def forward(mlp: Any, states: Any) -> Any:
        projections = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        plain = (None, (None, None, None))  # neither dropout nor a bias of the adapter
        if not torch.is_grad_enabled() or fast_lora._lora_dropout_and_bias(projections, states) != plain:
            return fast_lora.apply_lora_mlp_swiglu(mlp, states)
        weights = [each for projection in projections for each in get_lora_parameters(projection)]
        return fast_lora._apply(function, states, *weights, *kernels, True, None, None, None, None)

    return forward


def _function() -> Any:
    """Unsloth's function without its result: it keeps for the backward pass what that one keeps."""
    from unsloth.kernels import fast_lora

    class WithoutResult(fast_lora.LoRA_MLP):  # type: ignore[misc]
        @staticmethod
        @fast_lora.torch_amp_custom_fwd  # type: ignore[untyped-decorator]
        def forward(ctx: Any, states: Any, *arguments: Any) -> Any:
            gate, up, down = arguments[:5], arguments[5:10], arguments[10:15]  # weight, its quantization, A, B, scale
            kernel = arguments[16]  # of the backward pass; the one before is the forward pass's
            gated, upped = fast_lora.matmul_lora(states, *gate), fast_lora.matmul_lora(states, *up)
            ctx.custom_saved_tensors = (*gate[:2], gate[4], *up[:2], up[4], *down[:2], down[4], kernel)
            ctx.save_for_backward(*gate[2:4], *up[2:4], *down[2:4], states, gated, upped, None, None, None)
            ctx.inplace = not fast_lora._rms_layernorm._SAVE_OUTPUT or fast_lora._may_overwrite_input(states)
            ctx.dropout_p, ctx.biases, ctx.global_buffer = (0.0, 0.0, 0.0), (False, False, False), True
            return states.new_zeros(()).expand(states.shape)

    return WithoutResult


@functools.cache
def _in_place() -> Any:
    """Unsloth's kernel for the gradients of SwiGLU, as an operation that overwrites its arguments also where blocks are
    compiled. Unsloth gives the compiler arithmetic, which then holds three more tensors of the MLP's width: 0.37 GiB of
    4.08 GiB at Phi-3-mini's peak.
    """
    from torch.library import custom_op
    from unsloth.kernels.swiglu import swiglu_DWf_DW_dfg_kernel

    def overwrite(products: Any, gated: Any, upped: Any) -> None:
        swiglu_DWf_DW_dfg_kernel(products, gated, upped)

    schema = "(Tensor(a!) products, Tensor(b!) gated, Tensor(c!) upped) -> ()"
    names = ("products", "gated", "upped")
    operation = custom_op("tuneship::swiglu_gradients", overwrite, mutates_args=names, schema=schema)

    def kernel(products: Any, gated: Any, upped: Any) -> Any:
        operation(products, gated, upped)
        return products, gated, upped

    return kernel


def _gradients(model: Any) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of a few tokens, outside compiled blocks, which would be compiled for these alone."""
    import torch

    embeddings = model.get_input_embeddings().weight
    ids = torch.arange(1, TOKENS + 1, device=embeddings.device)[None] % len(embeddings)
    mixed = embeddings.dtype != torch.float32
    before = os.environ.get("UNSLOTH_BLOCK_COMPILE")
    os.environ["UNSLOTH_BLOCK_COMPILE"] = "0"
    try:
        with torch.autocast(embeddings.device.type, dtype=embeddings.dtype if mixed else None, enabled=mixed):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        trained = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return loss.item(), {name: gradient.float() for name, gradient in trained.items()}
    finally:
        model.zero_grad(set_to_none=True)
        if before is None:
            del os.environ["UNSLOTH_BLOCK_COMPILE"]
        else:
            os.environ["UNSLOTH_BLOCK_COMPILE"] = before


def _forget_trial(model: Any) -> None:
    """What Unsloth does, with a warning, when its trainer finds that a model was used before."""
    import torch
    from unsloth_zoo.gradient_checkpointing import reset_unsloth_gradient_checkpointing_buffers

    torch._dynamo.reset()
    with suppress(NameError):  # its offloading was never switched on
        reset_unsloth_gradient_checkpointing_buffers()
    for module in model.modules():
        if marker := vars(module).get("_unsloth_pretrain_marker"):
            marker["seen"] = False


def _same(one: tuple[float, dict[str, Any]], other: tuple[float, dict[str, Any]]) -> bool:
    """Up to what two runs of the same differ by."""
    if one[1].keys() != other[1].keys() or abs(one[0] - other[0]) > 1e-3 * abs(one[0]):
        return False
    pairs = [(gradient, other[1][name]) for name, gradient in one[1].items()]
    return all(bool((a - b).abs().max() <= TOLERANCE * a.abs().max()) for a, b in pairs)
