"""Asks questions, streaming and concurrently, and keeps every answer the moment that it is complete."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.endpoint import Endpoint
from clients.questions import Question

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ATTEMPTS = 4
FIRST_WAIT_S = 0.5


@dataclass(frozen=True)
class Answer:
    """One answer, or why there is none: then `error` says so and the figures mean nothing.

    ttft_ms: request to first token. tokens_per_s: output tokens after the first, per second.
    """

    question_id: str
    model: str
    text: str
    error: str
    finish_reason: str
    ttft_ms: float | None
    seconds: float
    output_tokens: int | None
    attempts: int

    @property
    def tokens_per_s(self) -> float | None:
        """None where it cannot be told."""
        if self.ttft_ms is None or not self.output_tokens or self.output_tokens < 2:
            return None
        streaming_s = self.seconds - self.ttft_ms / 1000
        return (self.output_tokens - 1) / streaming_s if streaming_s > 0 else None


@dataclass(frozen=True)
class AskOptions:
    """How to ask; greedy by default."""

    max_tokens: int = 64
    temperature: float = 0.0
    system: str = ""
    concurrency: int = 8
    seed: int = 3407


async def ask_all(
    endpoint: Endpoint,
    model: str,
    questions: Sequence[Question],
    options: AskOptions,
    results: Path,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    """Every question once; answers that `results` holds already are not asked for again. Order follows `questions`."""
    done = {
        answer.question_id: answer for answer in read_answers(results) if answer.model == model and not answer.error
    }
    gate, client = asyncio.Semaphore(options.concurrency), endpoint.client()

    async def one(question: Question) -> Answer:
        if question.id in done:
            answer = done[question.id]
        else:
            async with gate:
                answer = await _with_retries(client, model, question, options)
            _keep(results, answer)
        on_answer(answer)
        return answer

    return list(await asyncio.gather(*(one(question) for question in questions)))


async def _with_retries(client: AsyncOpenAI, model: str, question: Question, options: AskOptions) -> Answer:
    """Transient faults (connection, 429, 5xx, a broken-off stream) are tried again with backoff; others are not."""
    import openai

    wait_s, error, began = FIRST_WAIT_S, "", time.perf_counter()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _ask(client, model, question, options, attempt)
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, _BrokenOffError) as fault:
            error = f"{type(fault).__name__}: {fault}"
        except openai.APIError as fault:
            error = f"{type(fault).__name__}: {fault}"
            break
        except Exception as fault:  # the client's parser meets what a broken server sends
            if not isinstance(fault, ValueError | OSError) and type(fault).__module__.split(".")[0] not in _TRANSPORT:
                raise
            error = f"{type(fault).__name__}: {fault}"
        if attempt < ATTEMPTS:
            await asyncio.sleep(wait_s)
            wait_s *= 2
    return Answer(question.id, model, "", error[:300], "", None, time.perf_counter() - began, None, attempt)


_TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2")


class _BrokenOffError(Exception):
    """The stream ended without a finish reason, or with an error event."""


async def _ask(client: AsyncOpenAI, model: str, question: Question, options: AskOptions, attempt: int) -> Answer:
    messages: list[Any] = [{"role": "system", "content": options.system}] if options.system else []
    messages.append({"role": "user", "content": question.question})
    began, first, text, finish, tokens = time.perf_counter(), None, "", "", None
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter()
                text += choice.delta.content
            finish = choice.finish_reason or finish
    seconds = time.perf_counter() - began
    if not finish:
        raise _BrokenOffError("the stream ended without a finish reason")
    if not text.strip():
        return Answer(question.id, model, text, "empty answer", finish, None, seconds, tokens, attempt)
    ttft_ms = 1000 * (first - began) if first else None
    return Answer(question.id, model, text, "", finish, ttft_ms, seconds, tokens, attempt)


def _keep(results: Path, answer: Answer) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


def read_answers(results: Path) -> list[Answer]:
    """What was answered so far; a last line that was cut off by a crash is left out."""
    if not results.exists():
        return []
    answers = []
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            answers.append(Answer(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return answers
