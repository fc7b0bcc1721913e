"""Figures of a load: percentiles, throughput, goodput. No measurement is None, never zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clients.load import Timing

SHARES = (50, 90, 99)


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count as good; None demands nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_s: float | None = None

    def is_kept(self, timing: Timing) -> bool:
        """All of the limits."""
        limits = ((timing.ttft_ms, self.ttft_ms), (timing.tpot_ms or 0.0, self.tpot_ms), (timing.end_s, self.e2e_s))
        return all(limit is None or value <= limit for value, limit in limits)

    @property
    def is_stated(self) -> bool:
        """Whether any limit was given."""
        return (self.ttft_ms, self.tpot_ms, self.e2e_s) != (None, None, None)


def row(timings: Sequence[Timing], errors: Mapping[str, int], seconds: float, slo: Slo) -> dict[str, Any]:
    """One line of the table. `seconds`: from the first request to the end of the last."""
    made: dict[str, Any] = {"completed": len(timings), "failed": sum(errors.values()), "errors": dict(errors)}
    made["seconds"] = round(seconds, 3)
    per_s = 1 / seconds if timings else None
    made["requests_per_s"] = _rounded(per_s and len(timings) * per_s)
    made["output_tokens_per_s"] = _rounded(per_s and sum(one.output_tokens for one in timings) * per_s)
    made["prompt_tokens_mean"] = _mean([one.prompt_tokens for one in timings])
    made["output_tokens_mean"] = _mean([one.output_tokens for one in timings])
    good = sum(slo.is_kept(one) for one in timings)
    made["goodput_requests_per_s"] = _rounded(per_s and good * per_s) if slo.is_stated else None
    made["good_share"] = round(good / (len(timings) + made["failed"]), 4) if slo.is_stated and timings else None
    made["late_ms_p99"] = percentile([1000 * (one.began - one.due) for one in timings], 99)
    values = {
        "ttft_ms": [one.ttft_ms for one in timings],
        "itl_ms": [gap for one in timings for gap in one.itl_ms],
        "tpot_ms": [one.tpot_ms for one in timings if one.tpot_ms is not None],
        "e2e_s": [one.end_s for one in timings],
    }
    for name, seen in values.items():
        made[f"{name}_mean"] = _mean(seen)
        made |= {f"{name}_p{share}": percentile(seen, share) for share in SHARES}
    return made


def percentile(values: Sequence[float], share: int) -> float | None:
    """Nearest rank; None without values."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-share * len(ordered) // 100) - 1)], 3) if ordered else None


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


COLUMNS = (
    "load",
    "completed",
    "failed",
    "output_tokens_per_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "tpot_ms_p50",
    "e2e_s_p50",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a person."""
    columns = [*COLUMNS, *(["goodput_requests_per_s"] if any(row["goodput_requests_per_s"] for row in rows) else [])]
    cells = [columns, *([_cell(row, name) for name in columns] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    errors = [f"{_cell(row, 'load')}: {count} x {name}" for row in rows for name, count in row["errors"].items()]
    return "\n".join([*lines, *errors])


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name == "load":
        return f"c={row['streams']}" if "streams" in row else f"{row['rate']:g}/s"
    return "-" if row[name] is None else str(row[name])
