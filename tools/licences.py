#!/usr/bin/env python3
"""Judges the licence of every locked package by requirements/licences.toml and writes docs/licences.md.

usage: tools/licences.py [--check]      --check says whether the page is up to date, and writes nothing

A licence that is neither allowed nor explained there is an error: above all AGPL, and none at all. What packages say
comes from requirements/licences.json (tools/image_locks.py). Standard library only.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from image_locks import IN_IMAGES, LICENCES, OTHERS, REQUIREMENTS, ROOT, pins

PAGE = ROOT / "docs" / "licences.md"
IMAGES = {
    "clients": "clients",
    "server": "server",
    "trainer": "trainer (cpu)",
    "trainer-cuda": "trainer (cuda)",
    "converter": "trainer (cpu)",
    "embedded": "trainer (both)",
}


@dataclass(frozen=True)
class Judged:
    """One package in one version."""

    package: str
    version: str
    licence: str
    why: str
    locks: tuple[str, ...]
    is_accepted: bool


def licence_of(said: dict[str, Any], words: dict[str, str]) -> str:
    """An SPDX expression, or an empty text: the package's own expression if there is one, else its short free text."""
    if expression := said.get("expression"):
        return str(expression)
    ids = set(words.values())
    for text in (said.get("text", ""), *said.get("classifiers", [])):
        known = words.get(text, text)
        if known in ids or re.fullmatch(
            r"(?:[A-Za-z0-9]+-[\w.-]+|MIT|ISC|BSD|Unlicense)(?: (?:AND|OR) [\w.-]+)*", known
        ):
            return known
    return ""


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Every part joined by AND, and one of those joined by OR. Brackets are in no expression here, and are refused."""
    parts = [re.split(r"\s+OR\s+", part) for part in re.split(r"\s+AND\s+", expression)]
    return all(any(re.sub(r"\s+WITH\s+.*", "", choice) in allowed for choice in part) for part in parts)


def judge(said: dict[str, dict[str, Any]], rules: dict[str, Any], locks: dict[str, dict[str, str]]) -> list[Judged]:
    """All packages of all locks, sorted."""
    judged = []
    for pin, statement in sorted(said.items()):
        package, version = pin.split("==")
        rule = rules["packages"].get(package, {})
        licence = rule.get("licence") or licence_of(statement, rules["words"])
        why = rule.get("why") or rules["licences"].get(licence, {}).get("why", "")
        used = tuple(name for name, pinned in locks.items() if pinned.get(package) == version)
        judged.append(
            Judged(
                package,
                version,
                licence,
                why,
                used,
                bool(licence) and (bool(why) or is_allowed(licence, set(rules["allowed"]))),
            )
        )
    return judged


def everything() -> list[Judged]:
    said = json.loads(LICENCES.read_text(encoding="utf-8"))
    rules = tomllib.loads((REQUIREMENTS / "licences.toml").read_text(encoding="utf-8"))
    return judge(said, rules, {name: pins(name) for name in IN_IMAGES + OTHERS})


def page(judged: list[Judged]) -> str:
    explained: dict[tuple[str, str], list[str]] = {}
    for each in judged:
        if each.why:
            explained.setdefault((each.licence, each.why), []).append(each.package)
    lines = "\n".join(
        f"| {', '.join(dict.fromkeys(names))} | {licence} | {why} |" for (licence, why), names in explained.items()
    )
    return f"""# Licences of what is installed

Written by `tools/licences.py` from what the packages themselves say (`requirements/licences.json`) and from the rules
in `requirements/licences.toml`. A test fails when a package of a lock is missing here, says nothing, or has a licence
that is neither allowed nor explained. `make sbom` lists what really lies in an image, Debian's packages included.

Not in these tables: vLLM's own image, the CUDA image that llama.cpp is compiled in, and the Debian base.

## What needs a word

| package | licence | why it may be there |
|---|---|---|
{lines}

## In images

{_table([each for each in judged if set(each.locks) & set(IN_IMAGES)], IN_IMAGES)}

## In development environments only

{_table([each for each in judged if not set(each.locks) & set(IN_IMAGES)], OTHERS)}
"""


def _table(judged: list[Judged], locks: tuple[str, ...]) -> str:
    rows = "\n".join(
        f"| {each.package} | {each.version} | {each.licence} | "
        + ", ".join(dict.fromkeys(IMAGES.get(name, name) for name in each.locks if name in locks))
        + " |"
        for each in judged
    )
    return f"| package | version | licence | where |\n|---|---|---|---|\n{rows}"


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    judged = everything()
    refused = [each for each in judged if not each.is_accepted]
    for each in refused:
        print(
            f"{each.package} {each.version}: licence {each.licence or 'unknown'} is neither allowed nor explained. "
            "Read its terms, then drop the package or explain it in requirements/licences.toml.",
            file=sys.stderr,
        )
    if refused:
        return 1
    written = page(judged)
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != written:
            print(f"{PAGE} is not what the locks say: tools/licences.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
