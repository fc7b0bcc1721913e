"""Renders a conversation with the model's own chat template and marks the tokens that are trained: answers only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from modelstore import UserError
from trainer.rows import REJECTED, Conversation
from trainer.templates import bounded_time


@dataclass(frozen=True)
class Example:
    """A tokenised row. completion_mask is 1 where the loss counts: the answers and the token that ends each.

    Of a preference row both are those of the prompt and the chosen answer, with which the row ends; `rejected_ids` can
    stand in that answer's place.
    """

    input_ids: list[int]
    completion_mask: list[int]
    rejected_ids: list[int] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the first that is trained."""
        return self.completion_mask.index(1) if self.is_trained else len(self.input_ids)

    @property
    def is_trained(self) -> bool:
        return any(self.completion_mask)

    @property
    def sequences(self) -> list[int]:
        """Tokens of each sequence that a training step computes for the row: one, or two of a preference row."""
        rejected = [self.prompt_tokens + len(self.rejected_ids)] if self.rejected_ids else []
        return [len(self.input_ids), *rejected]

    def cut(self, length: int) -> Example:
        """At most `length` tokens. A pair whose rest does not differ has nothing to learn from and is not trained."""
        rejected = self.rejected_ids[: max(0, length - self.prompt_tokens)]
        ids, mask = self.input_ids[:length], self.completion_mask[:length]
        if self.rejected_ids and rejected == ids[self.prompt_tokens :]:
            return Example(ids, [0] * len(ids))
        return Example(ids, mask, rejected)


def render(conversation: Conversation, tokenizer: Any) -> Example:
    """Token ids and mask of a whole conversation, not cut.

    The mask follows character offsets: what an assistant turn adds to the text of the prompt before it, up to and with
    the end-of-turn token. Raises UserError when the template refuses or drops a turn, or rewrites earlier turns.
    """
    if conversation[0][0] == "text":
        return _document(conversation[0][1], tokenizer)
    if conversation[-1][0] == REJECTED:
        return _pair(conversation, tokenizer)
    messages = [{"role": role, "content": content} for role, content in conversation]
    text = _template(tokenizer, messages)
    _refuse_lost_turns(messages, text)
    spans = _answer_spans(tokenizer, messages, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # templates write BOS themselves
    ids = list(encoded["input_ids"])
    return Example(ids, _mask(ids, encoded["offset_mapping"], list(tokenizer.added_tokens_decoder), spans))


def prompt_text(tokenizer: Any, question: str) -> str:
    """The text after which the model answers a single question."""
    return _template(tokenizer, [{"role": "user", "content": question}], answer_next=True)


def refuse_unfit_tokenizer(tokenizer: Any, row_format: str) -> None:
    """Raises UserError when no row of this format can be rendered, before any is tried."""
    if not tokenizer.is_fast:
        raise UserError(
            "The base model's tokenizer cannot tell which characters a token covers, so answers cannot be marked. "
            "Use a base model with a tokenizer.json."
        )
    if row_format != "text" and not tokenizer.chat_template:
        raise UserError(
            f"The base model has no chat template, so it is no instruct model, and rows of the format {row_format} "
            'need one. Choose its -Instruct or -it variant, or train on documents: rows of the form {"text": "…"}.'
        )
    if row_format == "text" and tokenizer.eos_token_id is None:
        raise UserError("The base model's tokenizer names no EOS token, so documents cannot be ended. Set eos_token.")


def control_token_in(conversation: Conversation, tokenizer: Any) -> str | None:
    """A control token that stands in a turn as text, where it would end or forge a turn. Documents may hold any."""
    if conversation[0][0] == "text":
        return None
    control = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return next((token for token in sorted(control) for _, content in conversation if token in content), None)


def _document(text: str, tokenizer: Any) -> Example:
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return Example(ids, [1] * len(ids))


def _pair(conversation: Conversation, tokenizer: Any) -> Example:
    """Earlier answers of the conversation are part of the prompt here."""
    *asked, (_, chosen), (_, rejected) = conversation
    (wanted, before), (unwanted, also) = (
        _until_last_answer(render((*asked, ("assistant", answer)), tokenizer)) for answer in (chosen, rejected)
    )
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, unwanted, strict=False)))
    prompt = min(before, also, alike)  # a tokenizer may join the end of the prompt to an answer's beginning
    return Example(wanted, [0] * prompt + [1] * (len(wanted) - prompt), unwanted[prompt:])


def _until_last_answer(example: Example) -> tuple[list[int], int]:
    """Token ids up to the end-of-turn token of the last answer, and where that answer begins."""
    mask = example.completion_mask
    end = len(mask) - mask[::-1].index(1)
    start = end - mask[:end][::-1].index(0)
    return example.input_ids[:end], start


def _mask(
    ids: list[int], offsets: list[tuple[int, int]], control: list[int], spans: list[tuple[int, int]]
) -> list[int]:
    """1 for every token that covers a character of an answer, by the tokens' characters."""
    import numpy as np

    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    # some control tokens swallow the space behind them, which may be an answer's first; they stay the prompt's
    ends = np.where(np.isin(ids, control), np.minimum(ends, starts + 1), ends)
    trained = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        trained |= (starts < end) & (ends > start)
    mask: list[int] = trained.astype(int).tolist()
    return mask


def _refuse_lost_turns(messages: list[dict[str, str]], text: str) -> None:
    position = 0
    for number, message in enumerate(messages, 1):
        found = text.find(message["content"], position)
        if found < 0:
            raise UserError(
                f"The model's chat template leaves out or rewrites turn {number} ({message['role']}): "
                f"{message['content'][:60]!r} is not where it should be in {text[:200]!r}. Remove such turns or use "
                "another template."
            )
        if message["role"] != "system":  # some templates write it into a user turn
            position = found + len(message["content"])


def _answer_spans(tokenizer: Any, messages: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _template(tokenizer, messages[:number], answer_next=True)
        if not text.startswith(before):
            raise UserError(
                "The model's chat template writes earlier turns differently once an answer follows, so the trained "
                f"tokens of turn {number + 1} cannot be told: {before[-80:]!r} does not begin {text[:200]!r}. "
                "Use a template that does not, or rows of one question and one answer without a system turn."
            )
        closed = _template(tokenizer, messages[: number + 1])
        spans.append((len(before), _answer_end(tokenizer, message["content"], text, len(before), closed)))
    return spans


def _answer_end(tokenizer: Any, content: str, text: str, start: int, closed: str) -> int:
    """Where the answer that begins at `start` ends: behind its end-of-turn token, before the line break after it.

    `closed` is the text of the conversation that ends with this answer. It need not begin `text`: some templates
    (Phi-3's) write EOS after the last turn only.
    """
    marks = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    ends = "|".join(re.escape(mark) for mark in marks if mark.strip())
    content_start = text.find(content, start)  # the first place only: a later turn may say the same
    content_end = content_start + len(content)
    if ends and content_start >= 0 and (found := re.compile(rf"\s*(?:{ends})").match(text, content_end)):
        return found.end()
    written = closed.rstrip()  # the end-of-turn mark may be ordinary text to this tokenizer
    if content_start >= 0 and text.startswith(written) and len(written) > content_end:
        return len(written)
    raise UserError(
        f"The model's chat template writes no end-of-turn token after the answer {content[:60]!r}, so the tuned model "
        f"would never stop: {text[start : start + 200]!r}. Use a template that ends turns."
    )


def _template(tokenizer: Any, messages: list[dict[str, str]], *, answer_next: bool = False) -> str:
    try:
        with bounded_time():
            rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next)
    except Exception as error:  # a template is a program of others, which can fail in any way
        roles = [message["role"] for message in messages]
        raise UserError(
            f"The model's chat template refuses a conversation with the roles {roles}: {error}. Bring the rows into a "
            "form that it takes, or choose another base model."
        ) from None
    return rendered
