"""An OpenAI-compatible endpoint: who is there, under which key, and what goes wrong in words."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


SENT = "sent_at"


async def _note_sending(request: Any) -> None:
    """Notes when the last byte of a request was handed to the network.

    Before that, the client builds the request, may open a connection, and lets other requests of the same instant be
    built: on a busy machine 10 ms for each of them, which are not the server's.
    """

    async def trace(event: str, _: Any) -> None:
        if event.endswith("send_request_body.complete"):
            request.extensions[SENT] = time.perf_counter()

    request.extensions |= {SENT: time.perf_counter(), "trace": trace}


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. The key comes from the option, TUNESHIP_API_KEY_FILE, TUNESHIP_API_KEY or OPENAI_API_KEY."""

    url: str
    api_key: str = ""

    def client(self, timeout_s: float = 120.0) -> AsyncOpenAI:
        """The official client; retries are ours, so that they are counted. Each request has a connection of its own:
        llama.cpp's server closes some between two requests, and a request that is sent just then fails.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        http = DefaultAsyncHttpxClient(timeout=timeout_s, event_hooks={"request": [_note_sending]})
        return AsyncOpenAI(
            base_url=self.url,
            api_key=self.key,
            timeout=timeout_s,
            max_retries=0,
            default_headers={"Connection": "close"},
            http_client=http,
        )

    @property
    def key(self) -> str:
        """What is sent; a server without keys ignores it."""
        named = os.environ.get("TUNESHIP_API_KEY") or os.environ.get("OPENAI_API_KEY")
        return self.api_key or _key_from_file() or named or "none"


def _key_from_file() -> str:
    """The first key of the file that TUNESHIP_API_KEY_FILE names: a line is `key`, or begins with `name key`."""
    named = os.environ.get("TUNESHIP_API_KEY_FILE")
    if not named:
        return ""
    try:
        lines = Path(named).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"TUNESHIP_API_KEY_FILE names {named}, which cannot be read: {error}.") from None
    rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return rows[0][min(1, len(rows[0]) - 1)] if rows else ""


async def model_names(endpoint: Endpoint) -> list[str]:
    """What the endpoint lists, with the aliases that llama.cpp adds to a model.

    Raises UserError when it cannot be reached or refuses the key.
    """
    import openai

    try:
        async with endpoint.client(10) as client:
            models = [model async for model in client.models.list()]
    except openai.APIConnectionError:
        raise UserError(f"Nothing answers at {endpoint.url}. Start a server with `make serve`, or set URL=…") from None
    except openai.AuthenticationError:
        raise UserError(f"{endpoint.url} refuses the API key. Set TUNESHIP_API_KEY or --api-key.") from None
    except openai.APIError as error:
        raise UserError(f"{endpoint.url} is no OpenAI-compatible endpoint: {error}.") from None
    return list(dict.fromkeys(name for model in models for name in (model.id, *_aliases(model))))


def _aliases(model: Any) -> list[str]:
    found = getattr(model, "aliases", None)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def refuse_unknown(wanted: list[str], there: list[str], url: str) -> None:
    """Raise UserError for a model that the endpoint does not list."""
    if missing := [name for name in wanted if name not in there]:
        raise UserError(f"{url} has no model '{missing[0]}'. It has: {', '.join(there)}.")


def served_run(names: list[str]) -> str | None:
    """The run id among the listed models, if the endpoint is ours."""
    others = [name for name in names if name not in ("tuned", "base")]
    return others[0] if len(others) == 1 and "tuned" in names else None
