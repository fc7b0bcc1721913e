"""Brings texts into a form in which equal statements are equal: Unicode, case, spaces, numbers as values."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_WORDS = {word: number for number, word in enumerate([*_UNITS.split(), "eighteen", "nineteen"])}
_TENS = dict(zip(("twenty", "thirty", "forty", "fifty"), (20, 30, 40, 50), strict=True))
_TENS |= dict(zip(("sixty", "seventy", "eighty", "ninety"), (60, 70, 80, 90), strict=True))
_HAN = {character: number for number, character in enumerate("零一二三四五六七八九")} | {"两": 2}
_TEN_WORDS = "|".join(_TENS)
_SMALL = "|".join(word for word, number in _WORDS.items() if 0 < number < 10)
_COMPOUND = re.compile(rf"\b({_TEN_WORDS})(?:[\s-]({_SMALL}))?\b")
_SIMPLE = re.compile(rf"\b({'|'.join(_WORDS)})\b")
_HUNDREDS = re.compile(r"\b(\d{1,2}) hundred\b(?:(?: and)? (\d{1,2})\b)?")
_HAN_NUMBER = re.compile(
    r"([一二两三四五六七八九])?(十)([一二三四五六七八九])?|([零一二两三四五六七八九])(?=[个天日小次年月周人份元])"
)


@lru_cache(maxsize=512)  # an answer is compared with many wordings
def normalise(text: str) -> str:
    """NFKC, case-folded, typographic quotes and dashes plain, spaces single, numbers written as digits.

    "Ninety-nine", "99" and "９９" become "99"; "1,000.50" becomes "1000.5"; "九天" becomes "9天".
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = plain.translate(str.maketrans("‘’“”–—‑−", "''\"\"----"))
    plain = _COMPOUND.sub(lambda m: str(_TENS[m[1]] + (_WORDS[m[2]] if m[2] else 0)), plain)
    plain = _SIMPLE.sub(lambda m: str(_WORDS[m[1]]), plain)
    plain = _HUNDREDS.sub(lambda m: str(100 * int(m[1]) + int(m[2] or 0)), plain)
    plain = _HAN_NUMBER.sub(_from_han, plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"(?<![\d.])(\d+\.\d*?)0+(?!\d|\.\d)", lambda m: m[1].rstrip("."), plain)
    plain = re.sub(r"(?<=\d)\s+(?=%)", "", plain)
    return " ".join(plain.split())


def _from_han(found: re.Match[str]) -> str:
    if found[4]:
        return str(_HAN[found[4]])
    return str(10 * (_HAN[found[1]] if found[1] else 1) + (_HAN[found[3]] if found[3] else 0))
