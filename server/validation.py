"""What a request must be before an engine sees it: the checks that llama.cpp leaves out or answers with 200 or 500."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from server.errors import ApiError

TOKEN_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens", "n_predict")
MAX_PROMPTS = 128
# OpenAI's own bounds
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "top_logprobs": (0, 20),
}


@dataclass(frozen=True)
class Limits:
    """Of one request. A body above `body_bytes` cannot fit into the context, and tokenizing it would take seconds."""

    context_tokens: int
    slots: int

    @property
    def body_bytes(self) -> int:
        """At least 256 KiB; 16 bytes for every token of a long context (escaped Chinese needs 6)."""
        return max(256 << 10, 16 * self.context_tokens)


def parse_body(raw: bytes) -> dict[str, Any]:
    """The request as an object; 400 otherwise, also for NaN, infinite numbers, and half of a surrogate pair."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return body


def written(body: dict[str, Any]) -> bytes:
    """The request as an engine reads it."""
    return orjson.dumps(body)


def check_request(body: dict[str, Any], limits: Limits, is_chat: bool) -> None:
    """Raise ApiError 400 that names the field."""
    for name in TOKEN_LIMIT_FIELDS:
        _check_integer(body, name, 1, limits.context_tokens)
    _check_integer(body, "n", 1, limits.slots)
    for name, (least, most) in RANGES.items():
        _check_number(body, name, least, most)
    if not isinstance(body.get("stream"), bool | None):
        raise ApiError(400, "'stream' must be true or false.", param="stream")
    _check_stop(body.get("stop"))
    if is_chat:
        _check_messages(body.get("messages"))
        _check_tools(body.get("tools"))
    else:
        _check_prompt(body.get("prompt"))


def _check_integer(body: dict[str, Any], name: str, least: int, most: int) -> None:
    value = body.get(name)
    if value is not None and (not _is_integer(value) or not least <= value <= most):
        raise ApiError(400, f"'{name}' must be a whole number from {least} to {most}.", param=name)


def _check_number(body: dict[str, Any], name: str, least: float, most: float) -> None:
    value = body.get(name)
    if value is not None and (type(value) not in (int, float) or not least <= value <= most):
        raise ApiError(400, f"'{name}' must be a number from {least:g} to {most:g}.", param=name)


def _check_stop(stop: Any) -> None:
    texts = stop if isinstance(stop, list) else [stop]
    if stop is not None and not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "'stop' must be a text or a list of texts.", param="stop")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages or not all(isinstance(entry, dict) for entry in messages):
        raise ApiError(400, "'messages' must be a list of at least one message.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ApiError(400, "Every message needs a 'role', which is a text.", param=f"messages[{index}].role")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(_is_text(part) for part in parts):
            raise ApiError(400, "This model reads text only.", param=f"messages[{index}].content")


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_tools(tools: Any) -> None:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ApiError(400, "'tools' must be a list of objects.", param="tools")


def _check_prompt(prompt: Any) -> None:
    """Empty ones are refused too: llama.cpp never answers them when `n` is above 1, and vLLM refuses them."""
    entries = prompt if isinstance(prompt, list) else []
    if not _is_text_prompt(prompt) and not (entries and all(_is_prompt(entry) for entry in entries)):
        what = "a text, or a list of texts, tokens or lists of tokens, none of them empty"
        raise ApiError(400, f"'prompt' must be {what}.", param="prompt")
    if len(entries) > MAX_PROMPTS and not all(_is_token(entry) for entry in entries):
        raise ApiError(400, f"'prompt' may hold up to {MAX_PROMPTS} prompts.", param="prompt")


def _is_prompt(entry: Any) -> bool:
    if isinstance(entry, list):
        return bool(entry) and all(_is_token(token) for token in entry)
    return _is_text_prompt(entry) or _is_token(entry)


def _is_text_prompt(entry: Any) -> bool:
    return isinstance(entry, str) and entry != ""


def _is_token(entry: Any) -> bool:
    return _is_integer(entry) and entry >= 0


def _is_integer(value: Any) -> bool:
    """As JSON has it: 1.0 is one, true is none."""
    return type(value) is int or (type(value) is float and value.is_integer())
