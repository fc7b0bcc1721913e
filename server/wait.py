"""Waits for readiness from outside, as an operator's script would."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request


def wait_until_ready(url: str, timeout_s: float) -> str:
    """Empty as soon as GET <url>/ready answers 200; after `timeout_s` the last reason why it did not."""
    deadline = time.monotonic() + timeout_s
    while True:
        why = _why_not(f"{url.rstrip('/')}/ready")
        if not why or time.monotonic() >= deadline:
            return why
        time.sleep(0.1)


def _why_not(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:  # noqa: S310
            return "" if reply.status == 200 else f"status {reply.status}"
    except urllib.error.HTTPError as error:
        try:
            return str(json.loads(error.read()).get("why", error.reason))
        except ValueError:
            return f"status {error.code}"
    except (OSError, ValueError) as error:
        return str(error)
