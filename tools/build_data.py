#!/usr/bin/env python3
"""Writes train.jsonl, preferences.jsonl and questions.jsonl of each handbook in data/ from the facts in data/source/.

usage: tools/build_data.py [--check]        --check writes nothing and exits 1 where a file is not what would be written

Standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "data"
LANGUAGES = ("en", "zh")
CATEGORIES = ("api", "process", "multi-hop")  # also the names of the source files
WORDINGS = ("train", "eval")
COMPARED = 4  # training wordings of a fact that become pairs of a right and a wrong answer


@dataclass(frozen=True)
class Fact:
    """One answer with every wording of its question; a composition names the facts that it combines."""

    id: str
    category: str
    sections: tuple[str, ...]
    answer: str
    key_points: list[list[str]]
    forbidden: list[str]
    combines: tuple[str, ...]
    novel: bool
    train: list[str]
    eval: list[str]


def facts(language: str) -> list[Fact]:
    """Every fact of a language, in the order of the source files; a composition follows the facts that it combines."""
    found: dict[str, Fact] = {}
    for category in CATEGORIES:
        path = DATA / "source" / language / f"{category}.toml"
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fact"]:
            if entry["id"] in found:
                raise ValueError(f"{path}: the id {entry['id']!r} occurs twice")
            found[entry["id"]] = _fact(category, entry, found)
    return list(found.values())


def _fact(category: str, entry: dict[str, Any], known: dict[str, Fact]) -> Fact:
    combines = tuple(entry.get("combines", ()))
    parts = [known[part].sections[0] for part in combines]
    sections = tuple(dict.fromkeys(parts)) or (entry["section"],)
    return Fact(
        entry["id"],
        category,
        sections,
        entry["answer"],
        entry["key_points"],
        entry.get("forbidden", []),
        combines,
        entry.get("novel", False),
        *(entry[name] for name in WORDINGS),
    )


def train_rows(language: str) -> Iterator[dict[str, str]]:
    """One row for each training wording."""
    for fact in facts(language):
        for question in fact.train:
            yield {"question": question, "answer": fact.answer}


def preference_rows(language: str) -> Iterator[dict[str, str]]:
    """Rows of facts with a usual wrong answer: it stands in the rejected answer where the right one stands in the
    other.
    """
    for fact in facts(language):
        if fact.forbidden:
            said = next(wording for point in fact.key_points for wording in point if wording in fact.answer)
            rejected = fact.answer.replace(said, fact.forbidden[0])
            for question in fact.train[:COMPARED]:
                yield {"prompt": question, "chosen": fact.answer, "rejected": rejected}


def question_rows(language: str) -> Iterator[dict[str, Any]]:
    """One row for each evaluation wording, numbered within its category."""
    for category in CATEGORIES:
        asked = [(fact, wording) for fact in facts(language) if fact.category == category for wording in fact.eval]
        for number, (fact, question) in enumerate(asked, start=1):
            yield {
                "id": f"{category}-{number:03}",
                "category": category,
                "question": question,
                "answer": fact.answer,
                "key_points": fact.key_points,
                "forbidden": fact.forbidden,
                "source": "; ".join(fact.sections),
                **({"novel": True} if fact.novel else {}),
            }


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    rows = {"train.jsonl": train_rows, "preferences.jsonl": preference_rows, "questions.jsonl": question_rows}
    return {
        DATA / f"handbook-{language}" / name: "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in make(language)
        )
        for language in LANGUAGES
        for name, make in rows.items()
    }


def stale_files() -> list[Path]:
    """Generated files that are missing or differ from what their source says."""
    return [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    check = parser.parse_args().check
    stale = stale_files()
    for path in stale:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(DATA.parent)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files()[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
