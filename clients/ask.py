"""Asks questions, streaming and concurrently."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.answers import Answer, appending, keep, read_answers
from clients.endpoint import SENT, Endpoint
from clients.questions import Question
from clients.stream import BrokenOffError, chunks

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletionChunk

FIRST_WAIT_S = 0.5
_TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2")


@dataclass(frozen=True)
class AskOptions:
    """How to ask; greedy by default. Sample n of a question is drawn with seed + n."""

    max_tokens: int = 64
    temperature: float = 0.0
    system: str = ""
    concurrency: int = 8
    seed: int = 3407
    samples: int = 1
    stop: tuple[str, ...] = ()
    attempts: int = 4
    timeout_s: float = 120.0


async def ask_all(
    endpoint: Endpoint,
    model: str,
    questions: Sequence[Question],
    options: AskOptions,
    results: Path,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    """Every question, as often as `options.samples` says; answers that `results` holds already are not asked for again.

    In the order of `questions`, samples of a question together.
    """
    wanted = [(question, sample) for question in questions for sample in range(options.samples)]
    answers = {(a.question_id, a.sample): a for a in read_answers(results) if a.model == model and not a.error}
    for question, sample in wanted:
        if found := answers.get((question.id, sample)):
            on_answer(found)
    waiting = iter([pair for pair in wanted if (pair[0].id, pair[1]) not in answers])

    async with endpoint.client(options.timeout_s) as client:
        with appending(results) as file:

            async def work() -> None:
                for question, sample in waiting:
                    answer = await _with_retries(client, model, question, options, sample)
                    keep(file, answer)
                    answers[question.id, sample] = answer
                    on_answer(answer)

            await asyncio.gather(*(work() for _ in range(min(options.concurrency, len(wanted)))))
    return [answers[question.id, sample] for question, sample in wanted]


async def _with_retries(
    client: AsyncOpenAI, model: str, question: Question, options: AskOptions, sample: int
) -> Answer:
    """Transient faults (connection, 429, 5xx, a broken-off stream) are tried again with backoff; others are not."""
    import openai

    wait_s, error, began = FIRST_WAIT_S, "", time.perf_counter()
    for attempt in range(1, options.attempts + 1):
        try:
            return await _ask(client, model, question, options, sample, attempt)
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, BrokenOffError) as fault:
            error = f"{type(fault).__name__}: {fault}"
        except openai.APIStatusError as fault:
            error = f"{type(fault).__name__}: {fault}"
            break
        except Exception as fault:  # the client's parser meets what a broken server sends
            if not _is_servers_fault(fault):
                raise
            error = f"{type(fault).__name__}: {fault}"
        if attempt < options.attempts:
            await asyncio.sleep(wait_s)
            wait_s *= 2
    return Answer(question.id, model, "", error[:300], "", None, time.perf_counter() - began, None, attempt, sample)


def _is_servers_fault(fault: Exception) -> bool:
    """Errors of the transport, and those with which the client's parser meets a malformed stream."""
    import openai

    return (
        isinstance(fault, openai.APIError | ValueError | OSError) or type(fault).__module__.split(".")[0] in _TRANSPORT
    )


async def _ask(
    client: AsyncOpenAI, model: str, question: Question, options: AskOptions, sample: int, attempt: int
) -> Answer:
    import openai

    messages: Any = question.conversation(options.system)
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed + sample,
        stop=list(options.stop) or openai.omit,
        stream=True,
        stream_options={"include_usage": True},
    )
    received = await _received(stream)
    began = stream.response.request.extensions[SENT]
    seconds = time.perf_counter() - began
    if not received.finish:
        raise BrokenOffError("the stream ended without a finish reason")
    ttft_ms = 1000 * (received.first_at - began) if received.first_at else None
    said = "".join(received.pieces), "", received.finish
    return Answer(question.id, model, *said, ttft_ms, seconds, received.tokens, attempt, sample, received.engine)


@dataclass
class _Received:
    """A stream so far: pieces of text and when the first came, the server's count of output tokens."""

    pieces: list[str] = field(default_factory=list)
    finish: str = ""
    tokens: int | None = None
    first_at: float | None = None
    engine: str = ""


async def _received(stream: AsyncStream[ChatCompletionChunk]) -> _Received:
    received = _Received()
    async for chunk in chunks(stream):
        if chunk.usage:
            received.tokens = chunk.usage.completion_tokens
        received.engine = chunk.system_fingerprint or received.engine
        for choice in chunk.choices:
            if choice.delta.content:
                received.first_at = received.first_at or time.perf_counter()
                received.pieces.append(choice.delta.content)
            received.finish = choice.finish_reason or received.finish
    return received
