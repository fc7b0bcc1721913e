"""Direct preference optimization (Rafailov et al. 2023): trl's DPOTrainer on rows that are tokenised already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.backends.recipe import seeded

if TYPE_CHECKING:
    from trainer.prepare import Example

LENGTH = "tokens"  # a column beside those that trl reads


def dpo_trainer() -> Any:
    """trl's DPOTrainer (as the stack has patched it), seeded. The reference is the model with its adapter disabled."""
    from trl import DPOTrainer

    class PreferenceTrainer(seeded(DPOTrainer)):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if "ref" in self.model.peft_config:  # a copy of a fresh adapter, which trl makes: it changes nothing
                self.model.delete_adapter("ref")

        def tokens_of_rows(self) -> list[int]:
            return list(self.train_dataset[LENGTH])

        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            """As they stand: transformers would group them by a column that pairs do not have."""
            from torch.utils.data import SequentialSampler

            return SequentialSampler(eval_dataset)

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """The prompt and both answers are token ids already, rendered as for any other method."""
            return dataset

    return PreferenceTrainer


def preference_dataset(examples: Sequence[Example]) -> Any:
    """The prompt's token ids and those of both answers; the prompt is computed with each of them."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [example.input_ids[: example.prompt_tokens] for example in examples],
            "chosen_ids": [example.input_ids[example.prompt_tokens :] for example in examples],
            "rejected_ids": [example.rejected_ids for example in examples],
            LENGTH: [sum(example.sequences) for example in examples],
        }
    )
