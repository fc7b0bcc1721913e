"""The loss of the plain stack: logits at the trained tokens only, and on a CPU rows that share their beginning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.backends.joined import can_join, join
from trainer.backends.recipe import IGNORED_LABEL, seeded_trainer

SAME_LOSS = 0.01  # of the loss; a model that does not heed positions and mask is off by far more


def answer_loss_trainer() -> Any:
    """trl's SFTTrainer with logits, and so their gradient, only at the trained tokens.

    The loss is the same. At a vocabulary of 49,152 trl's own loss took 38% of a CPU step (profiled).
    """
    import torch
    from torch.nn.functional import cross_entropy

    class AnswerLossTrainer(seeded_trainer()):  # type: ignore[misc]
        joins: bool | None = None if not torch.cuda.is_available() else False  # None: not tried yet

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if self.joins is None:
                self.joins = self._joining_keeps_the_loss(inputs)
            outputs, targets = self._forward(model, inputs, self.joins)
            total = cross_entropy(outputs.logits.float(), targets, reduction="sum", ignore_index=IGNORED_LABEL)
            if num_items_in_batch is None:
                loss = total / (targets != IGNORED_LABEL).sum()
            else:  # the tokens of all processes, whose gradients are averaged
                loss = total * self.accelerator.num_processes / num_items_in_batch
            return (loss, outputs) if return_outputs else loss

        def _forward(self, model: Any, inputs: Any, joins: bool) -> tuple[Any, Any]:
            """Logits (trained tokens, vocabulary), and those tokens."""
            ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
            joined = join(ids, mask, labels, IGNORED_LABEL) if joins else None
            if joined is None:
                trained = labels[:, 1:] != IGNORED_LABEL
                with _head_sees(self.model, lambda hidden: hidden[:, :-1][trained]):
                    return model(input_ids=ids, attention_mask=mask), labels[:, 1:][trained]
            with _head_sees(self.model, lambda hidden: hidden[0, joined.before]):
                return model(**joined.model_inputs), joined.targets

        def _joining_keeps_the_loss(self, inputs: Any) -> bool:
            """Tried on the first batch: there are models that do not heed the positions or the mask."""
            if not can_join(self.model.config, self.args.max_length or inputs["input_ids"].shape[1]):
                return False
            training = self.model.training
            self.model.eval()
            with torch.no_grad():
                plain, joined = (self._mean_loss(inputs, joins) for joins in (False, True))
            self.model.train(training)
            return abs(joined - plain) <= SAME_LOSS * plain

        def _mean_loss(self, inputs: Any, joins: bool) -> float:
            outputs, targets = self._forward(self.model, inputs, joins)
            return float(cross_entropy(outputs.logits.float(), targets, ignore_index=IGNORED_LABEL))

    return AnswerLossTrainer


@contextmanager
def _head_sees(model: Any, select: Any) -> Iterator[None]:
    """Within the block the output layer gets what `select` makes of the hidden states. At the layer itself, so that
    whatever a family does to its logits afterwards stays.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (select(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
