"""Which slot of a llama.cpp process a request is put into. Other engines have none.

llama.cpp's key-value cache computes slots together only when their numbers follow each other (`llama_kv_cache` splits
a batch into runs of sequences): eight streams in eight slots that do not touch are eight passes over the weights for
every token, and in slots 0 to 7 one. Left alone it takes the slot that was idle longest, which scatters them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Said = list[tuple[int, int]]  # of each message: a hash of it and of all before it, and the characters up to its end
_NOTHING: Said = [(0, 0)]
LEAVES_S = (
    1.5  # llama.cpp looks once a second whether the client of an answer is still there, and computes on till then
)


class Slots:
    """The slots of one process, and who has which.

    A new request gets the one that splits the fewest passes off, unless another holds so much of its conversation that
    reading that again would take longer: `pass_costs` is how many characters of prompt are read in the time that one
    more pass takes for every token of an answer. Of equals it gets the one that was idle longest.
    """

    def __init__(self, count: int, pass_costs: int = 0) -> None:
        self._count, self._pass_costs = count, pass_costs
        self._free = dict.fromkeys(range(count))  # idle longest first
        self._busy: set[int] = set()
        self._leaving: dict[int, float] = {}  # until when the engine may still be at what nobody waits for
        self._held: list[Said] = [_NOTHING] * count
        self._waiting: deque[_Place] = deque()

    @contextmanager
    def taking(self, body: dict[str, Any]) -> Iterator[dict[str, int]]:
        """Around one request: what to add to it. Nothing when it has to wait, as the engine then gives it the first
        slot that comes free, or when it is several prompts, which one slot would take one after the other.
        """
        place = _Place(min(self._count, _sequences(body)), _said(body) if self._count else _NOTHING)
        self._waiting.append(place)
        self._give()
        try:
            yield {"id_slot": place.slots[0]} if place.slots and _prompts(body) == 1 else {}
        except BaseException:
            self._leaving |= dict.fromkeys(place.slots, time.monotonic() + LEAVES_S)
            raise
        finally:
            if not place.slots and place in self._waiting:
                self._waiting.remove(place)
            self._busy.difference_update(place.slots)
            self._free |= dict.fromkeys(place.slots)
            self._give()

    def _give(self) -> None:
        """To those who wait longest, as the engine does."""
        while self._waiting and self._waiting[0].wanted <= len(self._free):
            place = self._waiting.popleft()
            for _ in range(place.wanted):  # the engine gives the others of several answers its lowest free ones
                slot = min(self._free) if place.slots else self._best(place.said)
                del self._free[slot]
                self._busy.add(slot)
                self._held[slot] = place.said
                place.slots.append(slot)

    def _best(self, said: Said) -> int:
        """The free slot that saves most, in characters of prompt; less than 20 us with 64 slots."""
        busy, costs, now = self._busy, self._pass_costs, time.monotonic()
        found, most = -1, -2
        for slot in self._free:
            held = self._held[slot]
            saved = _shared(held, said) if held[0][0] == said[0][0] else 0
            saved += costs * ((slot - 1 in busy) + (slot + 1 in busy))
            if self._leaving.get(slot, 0.0) > now:
                saved = -1  # better than none
            if saved > most:
                found, most = slot, saved
        return found


class _Place:
    """What one request wants and has."""

    def __init__(self, wanted: int, said: Said) -> None:
        self.wanted, self.said = wanted, said
        self.slots: list[int] = []


def _prompts(body: dict[str, Any]) -> int:
    """A list of numbers is one prompt."""
    prompt = body.get("prompt")
    return sum(isinstance(each, str | list) for each in prompt) or 1 if isinstance(prompt, list) else 1


def _sequences(body: dict[str, Any]) -> int:
    return _prompts(body) * int(body.get("n") or 1)


def _said(body: dict[str, Any]) -> Said:
    told, size, found = 0, 0, []
    for message in body.get("messages") or [{"content": body.get("prompt")}]:
        content = message.get("content")
        text = content if isinstance(content, str) else repr(content)
        told, size = hash((told, message.get("role"), text)), size + len(text)
        found.append((told, size))
    return found


def _shared(held: Said, said: Said) -> int:
    """Characters of the messages with which both begin."""
    size = 0
    for (before, _), (now, upto) in zip(held, said, strict=False):
        if before != now:
            break
        size = upto
    return size
