"""Renders a conversation with the model's own chat template and marks the tokens that are trained: answers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelstore import UserError
from trainer.rows import Conversation


@dataclass(frozen=True)
class Example:
    """A tokenised row. completion_mask is 1 where the loss counts: the answers and the token that ends each."""

    input_ids: list[int]
    completion_mask: list[int]


def render(conversation: Conversation, tokenizer: Any) -> Example:
    """Token ids and mask of a whole conversation, not cut.

    The mask follows character offsets: what an assistant turn adds to the text of the prompt before it, up to and with
    the end-of-turn token. Raises UserError when the template is missing, refuses the roles, or rewrites earlier turns.
    """
    if conversation[0][0] == "text":
        ids = tokenizer(conversation[0][1], add_special_tokens=True)["input_ids"]
        ids = ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        return Example(ids, [1] * len(ids))
    messages = [{"role": role, "content": content} for role, content in conversation]
    text = _template(tokenizer, messages)
    spans = _answer_spans(tokenizer, messages, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(any(a < end and start < b for a, b in spans)) for start, end in encoded["offset_mapping"]]
    return Example(list(encoded["input_ids"]), mask)


def prompt_text(tokenizer: Any, question: str) -> str:
    """The text after which the model answers a single question."""
    return _template(tokenizer, [{"role": "user", "content": question}], answer_next=True)


def _answer_spans(tokenizer: Any, messages: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _template(tokenizer, messages[:number], answer_next=True)
        after = _template(tokenizer, messages[: number + 1])
        if not text.startswith(before):
            raise UserError(
                "The model's chat template writes earlier turns differently once an answer follows, so the trained "
                f"tokens of turn {number + 1} cannot be told. Its text is {text[:200]!r}. Use a template that does not."
            )
        whole = after if text.startswith(after) else text
        spans.append((len(before), len(before) + _answer_length(whole[len(before) :], message["content"])))
    return spans


def _answer_length(rest: str, content: str) -> int:
    """Characters of an answer with its end-of-turn token, without the line break that templates put behind it."""
    at = rest.find(content.strip())
    if at < 0:
        raise UserError(f"The chat template changes the answer {content[:60]!r} beyond recognition: {rest[:200]!r}.")
    return len(rest.rstrip())


def _template(tokenizer: Any, messages: list[dict[str, str]], *, answer_next: bool = False) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            "The base model has no chat template, so it is no instruct model. Choose its -Instruct or -it variant, "
            'or train on documents: rows of the form {"text": "…"}.'
        )
    try:
        rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next)
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise UserError(f"The model's chat template refuses a conversation with the roles {roles}: {error}.") from None
    return rendered
