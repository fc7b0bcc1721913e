"""Measures a model on a few trained rows: what it would say, and how probable it finds every token of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.render import Example

PROBES = 8
MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Probe:
    """The tokens before a trained answer, and the answer's own with its end-of-turn token."""

    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True)
class Measured:
    """Per probe: log-probabilities at the answer's positions, (answer tokens, vocabulary), and the greedy answer."""

    logprobs: list[Any]
    greedy: list[list[int]]


def choose_probes(examples: Sequence[Example], count: int = PROBES) -> list[Probe]:
    """First answers of `count` examples spread evenly over the data."""
    step = max(1, len(examples) // count)
    probes = [_first_answer(example) for example in examples[::step][:count]]
    return [probe for probe in probes if probe.prompt_ids and probe.answer_ids]


def _first_answer(example: Example) -> Probe:
    start = example.completion_mask.index(1)
    rest = example.completion_mask[start:]
    length = rest.index(0) if 0 in rest else len(rest)
    stop = start + min(length, MAX_ANSWER_TOKENS)
    return Probe(example.input_ids[:start], example.input_ids[start:stop])


def measure(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> Measured:
    """Teacher-forced log-probabilities and greedy answers (cut at the end-of-turn token, which is kept)."""
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        logprobs = [_answer_logprobs(model, probe) for probe in probes]
        greedy = _greedy(model, tokenizer, probes)
    model.train(training)
    return Measured(logprobs, greedy)


def _answer_logprobs(model: Any, probe: Probe) -> Any:
    import torch

    ids = torch.tensor([probe.prompt_ids + probe.answer_ids], device=model.device)
    kept = len(probe.answer_ids) + 1
    logits = model(input_ids=ids, logits_to_keep=kept).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _greedy(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> list[list[int]]:
    import torch

    width = max(len(probe.prompt_ids) for probe in probes)
    ids = [[tokenizer.pad_token_id] * (width - len(p.prompt_ids)) + p.prompt_ids for p in probes]
    mask = [[0] * (width - len(p.prompt_ids)) + [1] * len(p.prompt_ids) for p in probes]
    answers = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [_until(row, tokenizer.eos_token_id) for row in answers[:, width:].tolist()]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
