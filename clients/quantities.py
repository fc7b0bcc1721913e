"""Numbers with units as values: "three days", "3 days" and "72 h" are one quantity."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from clients.normalise import normalise

# unit -> (dimension, how many of the dimension's smallest unit)
_UNITS: dict[str, tuple[str, float]] = {}


def _define(dimension: str, factor: float, names: str) -> None:
    _UNITS.update(dict.fromkeys(names.split(), (dimension, factor)))


_define("time", 1e-3, "ms millisecond milliseconds 毫秒")
_define("time", 1, "s sec secs second seconds 秒 秒钟")
_define("time", 60, "min mins minute minutes 分钟")
_define("time", 3600, "h hr hrs hour hours 小时 个小时")
_define("time", 86400, "d day days 天 日")
_define("time", 7 * 86400, "week weeks 周 星期 个星期")
_define("months", 1, "month months 月 个月")
_define("months", 12, "year years 年")
_define("bytes", 1, "b byte bytes 字节")
for _power, _letter in enumerate("kmgt", 1):
    _define("bytes", 1000**_power, f"{_letter}b")
    _define("bytes", 1024**_power, f"{_letter}ib")
_define("length", 1e-3, "mm millimetre millimetres 毫米")
_define("length", 1e-2, "cm centimetre centimetres 厘米")
_define("length", 1, "m metre metres meter meters 米")
_define("length", 1e3, "km kilometre kilometres kilometer kilometers 公里 千米")
_define("mass", 1, "g gram grams 克")
_define("mass", 1e3, "kg kilogram kilograms 公斤 千克")
_define("mass", 1e6, "t tonne tonnes 吨")
_define("percent", 1, "% percent pct 百分点")
for _code, _names in {
    "eur": "€ eur euro euros 欧元",
    "usd": "$ usd dollar dollars 美元",
    "gbp": "£ gbp pound pounds 英镑",
    "cny": "¥ cny yuan rmb 元 人民币",
}.items():
    _define(_code, 1, _names)

_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "千": 1e3, "万": 1e4, "亿": 1e8}
_NAMES = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_QUANTITY = re.compile(
    r"(?P<before>[€$£¥])?\s?(?<![\w.])(?P<sign>(?<![\w)])-)?(?P<number>\d+(?:\.\d+)?)(?![.,]?\d)"
    rf"(?:[\s-]?(?P<scale>{'|'.join(_SCALES)})(?![a-z]))?(?:[\s-]?(?P<unit>{_NAMES})(?![a-z]))?"
)


@dataclass(frozen=True)
class Quantity:
    """A value in the smallest unit of its dimension; the dimension is "" for a plain number."""

    value: float
    dimension: str

    def equals(self, other: Quantity, tolerance: float = 0.0) -> bool:
        """Whether the values agree; a plain number agrees with the same number of anything."""
        if self.dimension and other.dimension and self.dimension != other.dimension:
            return False
        return math.isclose(self.value, other.value, rel_tol=1e-9, abs_tol=tolerance)


def quantities(text: str) -> list[Quantity]:
    """Every number of `text` with its unit, in order."""
    plain = re.sub(r"(?<=\d)\s*(百分之|per ?cent\b)", "%", normalise(text))
    plain = re.sub(r"百分之\s?(\d+(?:\.\d+)?)", r"\1%", plain)
    plain = re.sub(r"(?<=[一-鿿])(?=\d)", " ", plain)
    return [_quantity(found) for found in _QUANTITY.finditer(plain)]


def _quantity(found: re.Match[str]) -> Quantity:
    value = float(f"{found['sign'] or ''}{found['number']}") * _SCALES.get(found["scale"], 1)
    dimension, factor = _UNITS.get(found["unit"] or found["before"] or "", ("", 1.0))
    return Quantity(value * factor, dimension)


def one_quantity(text: str) -> tuple[Quantity, float]:
    """The quantity and tolerance of "99.2% ± 0.1"; the tolerance has the quantity's unit. Raises ValueError."""
    value, _, spread = text.partition("±")
    found = quantities(value)
    if len(found) != 1:
        raise ValueError(f"one number is expected in {text!r}, found {len(found)}")
    if not spread:
        return found[0], 0.0
    wide = quantities(spread)
    unit = _UNITS.get(_unit_name(value), ("", 1.0))[1]
    if len(wide) != 1 or wide[0].dimension not in ("", found[0].dimension):
        raise ValueError(f"a number is expected after ± in {text!r}")
    return found[0], wide[0].value * (1.0 if wide[0].dimension else unit)


def _unit_name(text: str) -> str:
    found = _QUANTITY.search(normalise(text))
    return (found["unit"] or found["before"] or "") if found else ""


def says_quantity(text: str, wanted: str) -> bool:
    """Whether `text` states the quantity `wanted` ("3 days", "99.2% ± 0.1") in any unit of its kind."""
    quantity, tolerance = one_quantity(wanted)
    return any(
        quantity.equals(said, tolerance) for said in quantities(text) if said.dimension or not quantity.dimension
    )
