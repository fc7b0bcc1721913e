"""A conversation in the terminal."""

from __future__ import annotations

import asyncio
from typing import Any

from clients.endpoint import Endpoint, model_names, refuse_unknown

HELP = "/model NAME switches, /both QUESTION asks base and tuned, /new forgets, /quit ends"


async def run_chat(endpoint: Endpoint, model: str) -> None:
    """Read lines until /quit or the end of the input."""
    names = await model_names(endpoint)
    refuse_unknown([model], names, endpoint.url)
    print(f"{model} at {endpoint.url}. {HELP}")
    history: list[dict[str, str]] = []
    while (line := await asyncio.to_thread(_read, f"{model}> ")) not in (None, "/quit"):
        command, _, rest = (line or "").partition(" ")
        if command == "/model" and rest in names:
            model, history = rest, []
        elif command == "/new":
            history = []
        elif command == "/both" and rest:
            for name in ("base", "tuned"):
                print(f"[{name}] ", end="")
                await _say(endpoint, name, [{"role": "user", "content": rest}])
        elif command.startswith("/"):
            print(f"{HELP}. Models: {', '.join(names)}")
        elif line:
            history.append({"role": "user", "content": line})
            history.append({"role": "assistant", "content": await _say(endpoint, model, history)})


def _read(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except EOFError:
        return None


async def _say(endpoint: Endpoint, model: str, messages: list[dict[str, str]]) -> str:
    import openai

    text = ""
    wish: Any = messages
    try:
        stream = await endpoint.client().chat.completions.create(model=model, messages=wish, stream=True)
        async for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                text += piece
                print(piece, end="", flush=True)
    except openai.APIError as error:
        print(f"error: {error}", end="")
    print()
    return text
