"""A conversation in the terminal, with one model or with two side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clients.endpoint import Endpoint, model_names, refuse_unknown
from clients.stream import chunks

if TYPE_CHECKING:
    from openai import AsyncOpenAI

HELP = "/model NAME switches, /both [NAME NAME] side by side, /system TEXT, /new forgets, /models lists, /quit ends"


@dataclass(frozen=True)
class ChatOptions:
    """How to ask."""

    max_tokens: int = 512
    temperature: float = 0.0
    system: str = ""


@dataclass
class Talk:
    """Who is asked, and what was said; each model has a history of its own."""

    models: list[str]
    system: str
    histories: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def asked(self, model: str, line: str) -> list[dict[str, str]]:
        """The history of a model with a new question."""
        history = self.histories.setdefault(model, [])
        history.append({"role": "user", "content": line})
        return [{"role": "system", "content": self.system}, *history] if self.system else list(history)

    def answered(self, model: str, text: str) -> None:
        """What was not answered is forgotten, so that a fault does not spoil the conversation."""
        if text:
            self.histories[model].append({"role": "assistant", "content": text})
        else:
            self.histories[model].pop()


async def run_chat(endpoint: Endpoint, models: list[str], options: ChatOptions) -> None:
    """Read lines until /quit or the end of the input."""
    names = await model_names(endpoint)
    refuse_unknown(models, names, endpoint.url)
    talk = Talk(models, options.system)
    print(f"{' | '.join(models)} at {endpoint.url}. {HELP}")
    async with endpoint.client() as client:
        while (line := await asyncio.to_thread(_read, f"{' | '.join(talk.models)}> ")) not in (None, "/quit"):
            if line and line.startswith("/"):
                print(command(talk, line, names))
            elif line and len(talk.models) == 1:
                model = talk.models[0]
                talk.answered(model, await _say(client, model, talk.asked(model, line), options))
            elif line:
                await _side_by_side(client, talk, line, options)


def command(talk: Talk, line: str, names: list[str]) -> str:
    """Do what a line that begins with / says; returns what to print."""
    word, _, rest = line.partition(" ")
    wanted = rest.split()
    if word == "/model" and len(wanted) == 1 and wanted[0] in names:
        talk.models = wanted
        return f"now {wanted[0]}"
    if word == "/both":
        pair = wanted or ["base", "tuned"]
        if len(pair) == 2 and set(pair) <= set(names):
            talk.models = pair
            return f"now {pair[0]} beside {pair[1]}"
    if word == "/new":
        talk.histories.clear()
        return "forgotten"
    if word == "/system":
        talk.system = rest
        talk.histories.clear()
        return "a new conversation with this system prompt" if rest else "a new conversation without system prompt"
    return f"{HELP}\nmodels: {', '.join(names)}"


def _read(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except EOFError:
        return None


async def _side_by_side(client: AsyncOpenAI, talk: Talk, line: str, options: ChatOptions) -> None:
    """Both are asked at once and shown in two columns when both have ended."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    asked = [talk.asked(model, line) for model in talk.models]
    said = await asyncio.gather(
        *(_say(client, model, turns, options, quiet=True) for model, turns in zip(talk.models, asked, strict=True))
    )
    table = Table(*talk.models, expand=True, show_lines=False)
    table.add_row(*(Text(text or "(no answer)") for text in said))
    Console().print(table)
    for model, text in zip(talk.models, said, strict=True):
        talk.answered(model, text)


async def _say(
    client: AsyncOpenAI, model: str, messages: list[dict[str, str]], options: ChatOptions, quiet: bool = False
) -> str:
    """The answer, printed as it comes unless quiet; "" when the server failed, which is said."""
    import openai

    text, turns = "", list[Any](messages)
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=turns,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            stream=True,
        )
        async for chunk in chunks(stream):
            piece = chunk.choices[0].delta.content if chunk.choices else None
            text += piece or ""
            if piece and not quiet:
                print(piece, end="", flush=True)
    except (openai.APIError, ValueError, OSError) as error:
        print(f"\nerror: {model}: {error}", end="")
        text = ""
    if not quiet:
        print()
    return text
