"""Which slot of a llama.cpp process a request is put into. Other engines have none.

llama.cpp's key-value cache computes slots together only when their numbers follow each other (`llama_kv_cache` splits
a batch into runs of sequences): eight streams in eight slots that do not touch are eight passes over the weights for
every token, and in slots 0 to 7 one. Left alone it takes the slot that was idle longest, which scatters them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRAINS = 16  # of a conversation: what two have in common counts in these, so that no single word decides
READS_S = 0.05  # in which llama.cpp has read a request and put it into its queue
LEAVES_S = 1.5  # llama.cpp looks once a second whether an answer's client is still there, and computes on till then


class Slots:
    """The slots of one process, and which of them are taken.

    A new request gets the one that splits the fewest passes off, unless another begins with so much of its text that
    reading that again would take longer: `pass_costs` is how many characters of prompt are read in the time that one
    more pass takes for every token of an answer. Of equals it gets the one that was idle longest.

    A request that is told a slot waits for that one alone, so it is told only a slot that is surely free. Where the
    engine chose, which it does for requests that must wait and for several sequences of one request, no slot is sure
    until it has answered all of those.
    """

    def __init__(self, count: int, pass_costs: int = 0) -> None:
        self._pass_costs = pass_costs
        self._free = dict.fromkeys(range(count))  # idle longest first; of what was told
        self._busy: set[int] = set()
        self._held = [""] * count  # the conversation that each slot read last
        self._left: dict[int, float] = {}  # until when the engine may still be at what nobody waits for
        self._unknown, self._unknown_until = 0, 0.0  # requests whose slots the engine chose
        self._told_at = 0.0

    @contextmanager
    def taking(self, body: dict[str, Any]) -> Iterator[dict[str, int]]:
        """Around one request: what to add to it, which is nothing where the engine is to choose."""
        slot = self._choice(body) if self._held else None
        if slot is None:
            with self._of_the_engines_choice():
                yield {}
            return
        try:
            yield {"id_slot": slot}
        except BaseException:
            self._left[slot] = time.monotonic() + LEAVES_S
            raise
        finally:
            self._busy.discard(slot)
            self._free[slot] = None

    def wait_s(self) -> float:
        """How long a request without a slot of its own must be kept back, so that the engine, which reads several at
        once, does not give it one that was just told to another.
        """
        return max(0.0, self._told_at + READS_S - time.monotonic())

    @contextmanager
    def _of_the_engines_choice(self) -> Iterator[None]:
        self._unknown += 1
        try:
            yield
        except BaseException:
            self._unknown_until = time.monotonic() + LEAVES_S
            raise
        finally:
            self._unknown -= 1

    def _choice(self, body: dict[str, Any]) -> int | None:
        """The surely free slot that saves most, in characters of prompt; some 20 us with 64 slots."""
        now = time.monotonic()
        if self._unknown or now < self._unknown_until or _sequences(body) > 1:
            return None
        if self._left:
            self._left = {slot: until for slot, until in self._left.items() if until > now}
        beside: dict[int, int] = {}  # slot -> what its neighbours at work save
        for slot in self._busy:
            for next_one in (slot - 1, slot + 1):
                beside[next_one] = beside.get(next_one, 0) + self._pass_costs
        text, found, most = _said(body), None, -1
        grain = max(1, len(text) // GRAINS)
        start: str | None = ""  # of what a slot must hold to be the better one, where no neighbour is at work
        for slot in self._free:
            if slot in self._left:
                continue
            saved, held = beside.get(slot, 0), self._held[slot]
            needed = _start(text, most - saved, grain) if saved else start
            if needed is not None and held.startswith(needed):
                found, most = slot, saved + _in_common(held, text, len(needed), grain)
                start = _start(text, most, grain)
        if found is not None:
            del self._free[found]
            self._busy.add(found)
            self._told_at = now
            self._held[found] = text
        return found


def _sequences(body: dict[str, Any]) -> int:
    """Answers to each of its prompts; a list of numbers is one prompt."""
    prompt, answers = body.get("prompt"), int(body.get("n") or 1)
    texts = sum(isinstance(each, str | list) for each in prompt) if isinstance(prompt, list) else 1
    return max(1, texts) * answers


def _said(body: dict[str, Any]) -> str:
    """All that the engine is to read, as one text."""
    messages = body.get("messages") or [{"content": body.get("prompt")}]
    return "\n".join(f"{message.get('role')}\n{_text(message.get('content'))}" for message in messages)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else repr(content)


def _start(text: str, saved: int, grain: int) -> str | None:
    """The least part of it, in whole grains, that is longer than `saved`; None where the whole is not."""
    least = max(0, (saved // grain + 1) * grain)
    return text[:least] if least <= len(text) else None


def _in_common(held: str, text: str, known: int, grain: int) -> int:
    """Characters with which both begin, in whole grains; the first `known` are the same."""
    while known + grain <= len(text) and held.startswith(text[known : known + grain], known):
        known += grain
    return known
