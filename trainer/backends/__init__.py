"""Training stacks behind one interface: each builds a trainer of trl from the same config."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modelstore import UserError
from trainer.config import TrainConfig

if TYPE_CHECKING:
    from modelstore import Base
    from trainer.prepare import Prepared


class Backend(Protocol):
    """A training stack."""

    name: str

    def trl_trainer(
        self, config: TrainConfig, base: Base, tokenizer: Any, prepared: Prepared, checkpoints: Path
    ) -> Any:
        """The base model in a trl SFTTrainer or DPOTrainer, with a fresh adapter unless every weight is trained;
        nothing has been trained yet.
        """

    def for_inference(self, model: Any) -> None:
        """Make the trained model answer: evaluation mode, and whatever else the stack needs."""


def choose_backend(config: TrainConfig, cache: Path) -> tuple[Backend, str]:
    """The stack that the config names, or the fastest one that this machine has; and why.

    Call it before anything imports transformers, which Unsloth patches. `cache` may keep compiled code.
    Raises UserError where a GPU is missing for one of the processes.
    """
    _refuse_missing_gpus(config.training.processes)
    if config.training.method == "full":
        from trainer.backends.transformers_backend import TransformersBackend

        return TransformersBackend(), 'method = "full" is done by it'
    wanted, installed = config.training.backend, importlib.util.find_spec("unsloth") is not None
    if wanted == "unsloth" and not installed:
        raise UserError(
            'training.backend = "unsloth", and the package unsloth is not installed in this environment. '
            'On a machine with an NVIDIA GPU `make setup` installs it; elsewhere take backend = "auto".'
        )
    if wanted == "unsloth" or (wanted == "auto" and installed and _has_nvidia_gpu()):
        from trainer.backends.unsloth_backend import UnslothBackend

        return UnslothBackend(cache), "the config names it" if wanted == "unsloth" else "an NVIDIA GPU is here"
    from trainer.backends.transformers_backend import TransformersBackend

    if wanted == "transformers":
        return TransformersBackend(), "the config names it"
    return TransformersBackend(), "unsloth is not installed" if _has_nvidia_gpu() else "no NVIDIA GPU is here"


def _refuse_missing_gpus(processes: int) -> None:
    import torch

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(
            f"training.processes = {processes} needs as many GPUs, and {torch.cuda.device_count()} can be seen here. "
            "Lower it (the effective batch stays the same), or look at CUDA_VISIBLE_DEVICES."
        )


def _has_nvidia_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available()) and torch.version.hip is None
