"""How much is let through: requests a minute and at once for one key, requests at once for one engine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ApiError


class Seats:
    """Requests that one engine takes at once, the waiting ones among them."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Around one request. Raises ApiError 503 when none is left."""
        if self._taken >= self._most:
            message = f"{self._most} requests are being answered or wait already. Try again in a moment."
            raise ApiError(503, message, "server_overloaded")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Quota:
    """Use of one key. A minute's requests may come in one burst; they come back evenly."""

    def __init__(self) -> None:
        self._per_minute: int | None = None
        self._streams: int | None = None
        self._open = 0
        self._left = math.inf
        self._counted_at = time.monotonic()

    def limit(self, per_minute: int | None, streams: int | None) -> None:
        """Set the limits; None is none."""
        if per_minute != self._per_minute:
            self._left = math.inf  # cut to the new limit at the next request
        self._per_minute, self._streams = per_minute, streams

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Around one request. Raises ApiError 429 when a limit is reached."""
        self._take_one()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def _take_one(self) -> None:
        if self._streams is not None and self._open >= self._streams:
            raise _too_many(f"{self._streams} requests of this key are being answered, which is its limit.", 1)
        if self._per_minute is None:
            return
        now, rate = time.monotonic(), self._per_minute / 60
        self._left = min(self._per_minute, self._left + (now - self._counted_at) * rate)
        self._counted_at = now
        if self._left < 1:
            wait_s = math.ceil((1 - self._left) / rate)
            raise _too_many(f"This key may ask {self._per_minute} times a minute. Wait {wait_s} s.", wait_s)
        self._left -= 1


def _too_many(message: str, wait_s: int) -> ApiError:
    return ApiError(429, message, "rate_limit_exceeded", headers={"Retry-After": str(wait_s)})
