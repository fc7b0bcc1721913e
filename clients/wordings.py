"""Whether a text says an accepted wording, and where."""

from __future__ import annotations

import re
from collections.abc import Callable

from clients.normalise import normalise
from clients.quantities import one_quantity, says_quantity

_WESTERN = r"[^\W\u2e80-\uffff]"  # letters and digits of scripts that set words apart by spaces
_TOKEN = re.compile(r"[\u2e80-\uffff]|[^\s\u2e80-\uffff]+")


def contains(text: str, wording: str) -> bool:
    """Whether `text` says `wording`: as a whole word or number, as `re:PATTERN` on the normalised text, or as the
    quantity of `num:3 days`.
    """
    if wording.startswith("num:"):
        return says_quantity(text, wording[4:])
    plain = normalise(text)
    if wording.startswith("re:"):
        return re.search(wording[3:], plain, re.IGNORECASE) is not None
    sought = normalise(wording)
    before = rf"(?<!{_WESTERN})(?<!\d\.)" if re.match(_WESTERN, sought) else ""
    after = rf"(?!{_WESTERN}|\.\d)" if re.match(_WESTERN, sought[-1:]) else ""
    return re.search(before + re.escape(sought) + after, plain) is not None


def refuse_bad(wording: str) -> None:
    """Raise ValueError for a pattern or quantity that cannot be read."""
    if wording.startswith("re:"):
        try:
            re.compile(wording[3:])
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{wording!r} is no regular expression: {error}") from None
    if wording.startswith("num:"):
        one_quantity(wording[4:])


def span(text: str, wording: str) -> tuple[int, int] | None:
    """Where `text` says `wording` first, in characters of `text` and to whole words; None where it does not."""
    if not contains(text, wording):
        return None
    tokens = [(found.start(), found.end()) for found in _TOKEN.finditer(text)]
    end = _first(len(tokens), lambda count: contains(text[: tokens[count - 1][1]], wording))
    stop = tokens[end - 1][1]
    skipped = _first(end, lambda count: not contains(text[tokens[count][0] : stop], wording) if count < end else True)
    return tokens[skipped - 1][0], stop


def _first(limit: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from 1 to `limit` from which on `holds`; `limit` itself is taken to hold."""
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
