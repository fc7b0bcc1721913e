"""What a server says about itself in Prometheus text: which engine it is, and its memory."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request

from clients.endpoint import Endpoint

_SAMPLE = re.compile(r"^\w*resident_memory_bytes(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)", re.MULTILINE)


async def model_memory(endpoint: Endpoint, model: str) -> float | None:
    """Bytes that the processes of `model` hold, from /metrics beside the API; None where the server does not say."""
    try:
        return memory_bytes(await asyncio.to_thread(_metrics, endpoint), model)
    except (OSError, ValueError):
        return None


async def slots(endpoint: Endpoint) -> int | None:
    """How many streams a model of the server answers at once: our server says so in its metrics and a bare llama.cpp in
    /props; None where the server does not say.
    """
    for path, read in (("/metrics", slots_of_metrics), ("/props", slots_of_props)):
        try:
            if found := read(await asyncio.to_thread(_fetched, endpoint, path)):
                return found
        except (OSError, ValueError):
            continue
    return None


def slots_of_metrics(text: str) -> int | None:
    """The fewest of any model."""
    found = [float(value) for value in re.findall(r"^tuneship_slots(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)]
    return int(min(found)) if found else None


def slots_of_props(text: str) -> int | None:
    """llama.cpp's own figure."""
    props = json.loads(text)
    found = props.get("total_slots") if isinstance(props, dict) else None
    return found if isinstance(found, int) and found > 0 else None


async def engine_name(endpoint: Endpoint) -> str | None:
    """llama.cpp or vLLM, told by the names of the server's metrics; None where it shows none."""
    try:
        return named_by(await asyncio.to_thread(_metrics, endpoint))
    except (OSError, ValueError):
        return None


def named_by(text: str) -> str | None:
    """The engine that writes such metrics."""
    engines = {"vllm:": "vLLM", "llamacpp:": "llama.cpp"}
    return next((name for prefix, name in engines.items() if re.search(rf"^{prefix}", text, re.MULTILINE)), None)


def _metrics(endpoint: Endpoint) -> str:
    return _fetched(endpoint, "/metrics")


def _fetched(endpoint: Endpoint, path: str) -> str:
    root = endpoint.url.rstrip("/").removesuffix("/v1")
    request = urllib.request.Request(root + path, headers={"Authorization": f"Bearer {endpoint.key}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  the user's own endpoint
        return str(answer.read().decode("utf-8"))


def memory_bytes(text: str, model: str) -> float | None:
    """The sum of the samples `…resident_memory_bytes` that carry this model's label, or no model label."""
    found = [
        float(sample["value"])
        for sample in _SAMPLE.finditer(text)
        if "model=" not in (sample["labels"] or "") or f'model="{model}"' in sample["labels"]
    ]
    return sum(found) if found else None
