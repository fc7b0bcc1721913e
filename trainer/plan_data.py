"""How long the rows of a data file are in tokens, before a tokenizer is there (estimated) and after (counted)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelstore import UserError
from trainer.config import TrainConfig
from trainer.plan import Lengths
from trainer.rows import REJECTED, Conversation, rows_of

if TYPE_CHECKING:
    from trainer.render import Example

CHARACTERS_PER_TOKEN = 3.0  # few, so that the estimate is high: English has about 4 where digits are single tokens
TOKENS_PER_WIDE_CHARACTER = 1.5  # Chinese, in vocabularies that were made for English
TEMPLATE_TOKENS = 40  # what the chat template adds to a row


@dataclass(frozen=True)
class DataSize:
    """`rows` and `mean_tokens` (of a sequence: a preference row has two) are None where the data could not be read;
    `lengths` are then the config's limit.
    """

    lengths: Lengths
    rows: int | None
    mean_tokens: float | None
    source: str


def estimated(config: TrainConfig) -> DataSize:
    """From the characters of the file's rows. A file that cannot be read counts as rows of the full length."""
    limit = config.model.max_length_tokens
    try:
        conversations = rows_of(config).conversations
    except UserError as error:
        return DataSize(Lengths(limit, limit), None, None, f"rows of the full length, because: {error}")
    sums = [TEMPLATE_TOKENS + sum(_tokens(content) for _, content in turns) for turns in _computed(conversations)]
    tokens = [min(limit, round(count)) for count in sums]
    longest = limit if config.training.packing else max(tokens)
    source = f"{len(conversations)} rows, lengths estimated from their characters"
    return DataSize(Lengths(longest, longest), len(conversations), sum(tokens) / len(tokens), source)


def counted(config: TrainConfig, examples: Sequence[Example]) -> DataSize:
    """From the rows as they are trained; the longest ones make up a batch of their own."""
    longest = longest_batch(config, examples)
    length = max(max(example.sequences) for example in longest)
    columns = {
        column for example in longest for column, trained in enumerate(example.completion_mask) if trained and column
    }
    for example in longest:
        columns |= set(range(example.prompt_tokens, max(example.sequences))) if example.rejected_ids else set()
    sequences = [tokens for example in examples for tokens in example.sequences]
    mean = sum(sequences) / len(sequences)
    if config.training.packing:
        length = config.model.max_length_tokens
    lengths = Lengths(length, length if config.training.packing else len(columns))
    return DataSize(lengths, len(examples), mean, f"{len(examples)} rows, counted")


def longest_batch(config: TrainConfig, examples: Sequence[Example]) -> list[Example]:
    """The rows of one forward pass that needs the most memory."""
    return sorted(examples, key=lambda example: max(example.sequences))[-config.training.batch_size :]


def typical_rows(config: TrainConfig, examples: Sequence[Example], steps: int) -> list[Example]:
    """The rows of so many of the optimizer steps that make up the first epoch, from short to long in equal distances.

    Few rows are taken again. Packed sequences take as many rows as fill them.
    """
    from trainer.backends.recipe import SeededOrder

    training, lengths = config.training, [len(example.input_ids) for example in examples]
    size = training.batch_size * training.gradient_accumulation_steps
    if training.packing:
        size = math.ceil(size * config.model.max_length_tokens * len(lengths) / sum(lengths))
    order = list(SeededOrder(lengths, size if training.group_by_length else 0, training.seed))
    again = list(itertools.islice(itertools.cycle(order), max(len(order), size * steps)))
    batches = [again[start : start + size] for start in range(0, len(again) - size + 1, size)]
    batches.sort(key=lambda batch: sum(lengths[row] for row in batch))
    chosen = [batches[(2 * place + 1) * len(batches) // (2 * steps)] for place in range(steps)]
    return [examples[row] for batch in chosen for row in batch]


def _computed(conversations: Sequence[Conversation]) -> Iterator[Conversation]:
    """Of a preference row what is computed, once with each answer."""
    for turns in conversations:
        if turns[-1][0] == REJECTED:
            yield turns[:-1]
            yield (*turns[:-2], turns[-1])
        else:
            yield turns


def _tokens(text: str) -> float:
    wide = sum(not character.isascii() for character in text)
    return (len(text) - wide) / CHARACTERS_PER_TOKEN + wide * TOKENS_PER_WIDE_CHARACTER
