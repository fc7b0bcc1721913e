"""Training stacks behind one interface: each builds a trl SFTTrainer from the same config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainer.config import TrainConfig

if TYPE_CHECKING:
    from modelstore import Base
    from trainer.prepare import Prepared


class Backend(Protocol):
    """A training stack."""

    name: str

    def sft_trainer(
        self, config: TrainConfig, base: Base, tokenizer: Any, prepared: Prepared, checkpoints: Path
    ) -> Any:
        """The base model with a fresh adapter in a trl SFTTrainer; nothing has been trained yet."""


def choose_backend(config: TrainConfig) -> Backend:
    """The stack that the config names; "auto" is the only one there is so far."""
    from trainer.backends.transformers_backend import TransformersBackend

    return TransformersBackend()
