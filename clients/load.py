"""One request of a load, with the time of every piece of its answer."""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clients.endpoint import SENT
from clients.stream import chunks

if TYPE_CHECKING:
    from openai import AsyncOpenAI

WORDS = ("red", "blue", "green", "house", "tree", "river", "stone", "light", "hand", "door", "book", "road", "bird")


@dataclass(frozen=True)
class Load:
    """What every request of a load has in common. Prompts are unique, so that no prefix cache can flatter."""

    model: str
    prompt_tokens: int = 512
    output_tokens: int = 128
    ignore_eos: bool = True


@dataclass(frozen=True)
class Timing:
    """Seconds from the request: `arrivals_s` of every piece of text, `end_s` of the stream. Where the tokens made no
    text (half a character, say), the end is the only arrival.
    """

    began: float
    arrivals_s: tuple[float, ...]
    end_s: float
    prompt_tokens: int
    output_tokens: int
    due: float = 0.0

    @property
    def ttft_ms(self) -> float:
        """Request to first text."""
        return 1000 * self.arrivals_s[0]

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between the pieces of text; a server that sends several tokens in a piece has fewer and longer gaps."""
        return [1000 * (b - a) for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]

    @property
    def tpot_ms(self) -> float | None:
        """Time of an output token after the first; None for a single one, and for a single piece of text."""
        if self.output_tokens < 2 or len(self.arrivals_s) < 2:
            return None
        return 1000 * (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.output_tokens - 1)


@dataclass
class Prompts:
    """Unique prompts of a wished length. Words become tokens at a rate that differs between models: it is measured."""

    rng: random.Random
    words: int

    def next(self) -> str:
        """A prompt that never occurred before, not in an earlier load either: it begins with a number of its own."""
        return f"{secrets.randbelow(10**12):012d} " + " ".join(self.rng.choices(WORDS, k=self.words))


async def fitted_prompts(client: AsyncOpenAI, load: Load, seed: int) -> Prompts:
    """Prompts of `load.prompt_tokens` as the server counts them, chat template included, found with three requests."""
    rng = random.Random(seed)  # noqa: S311  a load, not a secret
    probe = Load(load.model, load.prompt_tokens, 1, load.ignore_eos)
    few, many = 1, max(2, load.prompt_tokens // 2)
    short = (await request(client, probe, Prompts(rng, few).next())).prompt_tokens
    long = (await request(client, probe, Prompts(rng, many).next())).prompt_tokens
    per_word = max(0.1, (long - short) / (many - few))
    words = max(1, few + round((load.prompt_tokens - short) / per_word))
    return Prompts(rng, words)


async def request(client: AsyncOpenAI, load: Load, prompt: str, due: float | None = None) -> Timing:
    """Ask once, streaming. Raises what the client raises, and ConnectionError for a stream without tokens or usage.

    `due`: when an open loop wanted it sent.
    """
    arrivals: list[float] = []
    usage: Any = None
    stream = await client.chat.completions.create(
        model=load.model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=load.output_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True} if load.ignore_eos else None,
    )
    began = stream.response.request.extensions[SENT]
    async for chunk in chunks(stream):
        if chunk.choices and chunk.choices[0].delta.content:
            arrivals.append(time.perf_counter() - began)
        usage = chunk.usage or usage
    end_s = time.perf_counter() - began
    if not usage or not usage.completion_tokens:
        raise ConnectionError("the stream ended without tokens or without usage")
    return Timing(began, tuple(arrivals or [end_s]), end_s, usage.prompt_tokens, usage.completion_tokens, due or began)
