"""The pieces of a streamed answer, and what a broken stream is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import AsyncStream
    from openai.types.chat import ChatCompletionChunk


class BrokenOffError(OSError):
    """The stream ended without a finish reason, or held what is no chunk."""


async def chunks(stream: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[ChatCompletionChunk]:
    """Every chunk. The client builds them from whatever JSON came, so their shape is checked here."""
    async for chunk in stream:
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list) or not all(getattr(choice, "delta", None) for choice in choices):
            raise BrokenOffError("the stream is malformed: it holds what is no chunk")
        yield chunk
