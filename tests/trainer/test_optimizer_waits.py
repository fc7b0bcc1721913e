"""The optimizer of bitsandbytes without its waits, with the real one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not in this environment")


@pytest.mark.parametrize(("wish", "waits"), [("", 0), ("1", 3)])
def test_it_waits_for_no_tensor(wish: str, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from bitsandbytes.optim import AdamW8bit, optimizer

    from trainer.backends.recipe import queue_updates

    waited: list[torch.Tensor] = []
    monkeypatch.setattr(optimizer, "sync_gpu", waited.append)
    monkeypatch.setenv("TUNESHIP_WAITING_OPTIMIZER", wish)
    queue_updates()
    weights = [torch.nn.Parameter(torch.ones(16, 512)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    AdamW8bit(weights, lr=0.1).step()
    assert len(waited) == waits
    assert all(bool((weight < 1).all()) for weight in weights)
