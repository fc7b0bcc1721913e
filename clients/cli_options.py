"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

URL = "http://127.0.0.1:8000/v1"

store = click.option("--store", type=click.Path(path_type=Path), default=Path("models"), show_default=True)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def endpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where to ask and with which key."""
    command = click.option(
        "--api-key", default="", help="Else TUNESHIP_API_KEY_FILE, TUNESHIP_API_KEY or OPENAI_API_KEY."
    )(command)
    return click.option("--url", default=URL, show_default=True, help="Any OpenAI-compatible endpoint.")(command)
