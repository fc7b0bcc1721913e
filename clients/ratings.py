"""Human ratings of pairs of answers: kept click by click, summarised for the report."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clients.statistics import mean_interval, wilson

FILE = "ratings.jsonl"
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True)
class Rating:
    """One rater's view of one pair: a score from 1 to 5 for each model, or `same` with or without scores."""

    rater: str
    question_id: str
    base: int | None
    tuned: int | None
    same: bool
    time: str = ""

    @property
    def preference(self) -> int:
        """1 for the tuned model, -1 for the base, 0 for the same."""
        if self.same or self.base is None or self.tuned is None:
            return 0
        return (self.tuned > self.base) - (self.tuned < self.base)


def keep_rating(file: Path, rating: Rating) -> None:
    """One line, on the disk when this returns."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(rating), ensure_ascii=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_ratings(file: Path) -> list[Rating]:
    """The last word of every rater on every pair; lines cut off by a crash are left out."""
    latest: dict[tuple[str, str], Rating] = {}
    for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
        try:
            rating = Rating(**json.loads(line))
        except (ValueError, TypeError):
            continue
        latest[rating.rater, rating.question_id] = rating
    return list(latest.values())


def summarise_ratings(ratings: Sequence[Rating]) -> dict[str, Any] | None:
    """Means, wins and agreement; None without ratings. Raters' scores of one pair are averaged before the intervals."""
    if not ratings:
        return None
    wins, losses = (sum(one.preference == sign for one in ratings) for sign in (1, -1))
    low, high = wilson(wins, wins + losses) if wins + losses else (None, None)
    return {
        "raters": len({one.rater for one in ratings}),
        "ratings": len(ratings),
        "base": _mean([(one.question_id, one.base) for one in ratings]),
        "tuned": _mean([(one.question_id, one.tuned) for one in ratings]),
        "wins": wins,
        "losses": losses,
        "ties": len(ratings) - wins - losses,
        "win_rate": wins / (wins + losses) if wins + losses else None,
        "win_low": low,
        "win_high": high,
        "agreement": krippendorff_alpha(_by_pair(ratings).values()),
    }


def _mean(scores: Iterable[tuple[str, int | None]]) -> dict[str, float | None]:
    by_pair: dict[str, list[int]] = defaultdict(list)
    for pair, score in scores:
        if score is not None:
            by_pair[pair].append(score)
    means = [sum(given) / len(given) for given in by_pair.values()]
    if not means:
        return {"mean": None, "low": None, "high": None}
    low, high = mean_interval(means, LOWEST, HIGHEST)
    return {"mean": sum(means) / len(means), "low": low, "high": high}


def _by_pair(ratings: Iterable[Rating]) -> dict[str, list[int]]:
    by_pair: dict[str, list[int]] = defaultdict(list)
    for one in ratings:
        by_pair[one.question_id].append(one.preference)
    return by_pair


def majority(ratings: Iterable[Rating]) -> dict[str, int]:
    """What most raters prefer of each pair: 1 tuned, -1 base, 0 neither."""
    sums = {pair: sum(given) for pair, given in _by_pair(ratings).items()}
    return {pair: (total > 0) - (total < 0) for pair, total in sums.items()}


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Agreement of any number of raters with gaps (Krippendorff 2011), interval metric: 1 is perfect, 0 is chance.

    None without pairs that two have rated, or where everything was rated alike, so that chance cannot be told.
    """
    shared = [unit for unit in units if len(unit) > 1]
    pooled = [value for unit in shared for value in unit]
    expected = _spread(pooled) / (len(pooled) - 1) if pooled else 0.0
    if not expected:
        return None
    observed = sum(_spread(unit) / (len(unit) - 1) for unit in shared)
    return 1 - observed / expected


def _spread(values: Sequence[int]) -> float:
    """Sum of the squared differences of all ordered pairs."""
    total = sum(values)
    return 2 * len(values) * sum(value * value for value in values) - 2 * total * total
