"""Rows joined into one sequence give the losses and gradients of the padded batch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from trainer.backends.joined import MULTIPLE, can_join, join  # noqa: E402

PAD, IGNORED = 0, -100
BEGINNING = [5 + n % 6 for n in range(30)]


def batch(rows: list[list[int]], untrained: int) -> tuple[Any, Any, Any]:
    """Padded ids, mask and labels; the first `untrained` tokens of each row are not trained."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.where(mask.bool(), ids, IGNORED)
    labels[:, :untrained] = IGNORED
    return ids, mask, labels


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, vocab_size=40))


@pytest.mark.parametrize(
    ("rows", "untrained"),
    [
        ([[*BEGINNING, 11, 12, 13], [*BEGINNING, 14, 15], [*BEGINNING, 16, 17, 18, 19]], 31),
        ([[*BEGINNING, 11, 12], [*BEGINNING, 11, 12], [*BEGINNING, 13]], 27),  # trained tokens in the shared part
        ([[5, *range(8, 36)], [6, 7], [8, 9, 10]], 1),  # nothing is shared, much is padding
    ],
)
def test_loss_and_gradient_are_those_of_the_padded_batch(model: Any, rows: list[list[int]], untrained: int) -> None:
    ids, mask, labels = batch(rows, untrained)
    joined = join(ids, mask, labels, IGNORED)
    assert joined is not None
    assert joined.model_inputs["input_ids"].numel() < ids.numel()
    assert joined.model_inputs["input_ids"].numel() % MULTIPLE == len(joined.targets) % MULTIPLE == 0

    def gradient(logits: Any, targets: Any) -> tuple[float, Any]:
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        loss.backward()
        return float(loss.detach()), model.model.layers[0].mlp.up_proj.weight.grad.clone()

    plain = gradient(model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    hidden = model(**joined.model_inputs).logits
    found = gradient(hidden[0, joined.before], joined.targets)
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert torch.allclose(found[1], plain[1], atol=1e-5)


def test_nothing_is_joined_where_nothing_is_saved(model: Any) -> None:
    assert join(*batch([[5, 11, 12], [6, 13, 14]], 1), IGNORED) is None
    long = [[5, *range(600)], [6, *range(500)]]
    assert join(*batch(long, 1), IGNORED) is None
    assert can_join(model.config, 128)
    model.config.sliding_window = 64
    assert not can_join(model.config, 128)
    model.config.sliding_window = None
