"""What ratings say in sum."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.ratings import Rating, keep_rating, krippendorff_alpha, majority, read_ratings, summarise_ratings


def test_the_last_word_counts_and_a_cut_off_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    keep_rating(file, Rating("a", "q", 1, 5, False))
    keep_rating(file, Rating("a", "q", 4, 2, False))
    with file.open("a") as lines:
        lines.write('{"rater": "b"')
    (kept,) = read_ratings(file)
    assert kept.preference == -1


def test_the_summary_averages_raters_of_a_pair() -> None:
    found = summarise_ratings(
        [
            Rating("a", "1", 2, 5, False),
            Rating("b", "1", 4, 5, False),
            Rating("a", "2", 1, 4, False),
            Rating("b", "2", 3, 3, True),
            Rating("a", "3", None, None, True),
        ]
    )
    assert found is not None
    assert (found["raters"], found["ratings"], found["wins"], found["ties"], found["losses"]) == (2, 5, 3, 2, 0)
    assert found["base"]["mean"] == pytest.approx(2.5) and found["tuned"]["mean"] == pytest.approx(4.25)
    assert found["win_rate"] == 1.0 and found["win_low"] < 0.5
    assert summarise_ratings([]) is None


def test_only_the_same_gives_no_mean_and_no_rate() -> None:
    found = summarise_ratings([Rating("a", "1", None, None, True)])
    assert found and found["base"]["mean"] is None and found["win_rate"] is None and found["agreement"] is None


def test_agreement_is_krippendorffs() -> None:
    assert krippendorff_alpha([(1, 1), (-1, -1), (0, 0)]) == 1
    assert krippendorff_alpha([(1, 1), (1, 1)]) is None
    assert krippendorff_alpha([(1,), (0,)]) is None
    # two raters, three pairs: Do = 2/6, De = 2 * (1*1 * 3*3) / (6*5) with four 1 and two 0
    assert krippendorff_alpha([(1, 1), (1, 0), (0, 1)]) == pytest.approx(1 - (4 / 6) / (16 / 30))


def test_the_majority_decides_a_pair() -> None:
    ratings = [Rating("a", "1", 1, 2, False), Rating("b", "1", 1, 2, False), Rating("c", "1", 2, 1, False)]
    assert majority(ratings) == {"1": 1}
