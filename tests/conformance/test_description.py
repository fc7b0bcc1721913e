"""Schemathesis reads /openapi.json and asks the real server: what the description allows is answered as it
says, what it does not allow is refused, and no request ends an engine.

TUNESHIP_TEST_LONG=1 generates twenty times as many requests.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import settings
from schemathesis import Case, Config, GenerationMode

from modelstore import Store
from server.openapi import description
from server.validation import TOKEN_LIMIT_FIELDS, Limits
from tests.server.conftest import Served, serving

LIMITS = Limits(context_tokens=128, slots=4)
DESCRIPTION = description(LIMITS, needs_key=True)
KEY = "key-of-ada-4711"
CONFIG = {
    "seed": 4711,
    "generation": {"max-examples": 400 if os.environ.get("TUNESHIP_TEST_LONG") == "1" else 20, "database": "none"},
    "checks": {"positive_data_acceptance": {"enabled": False}},  # looked at below: the engine may refuse
    "headers": {"Authorization": f"Bearer {KEY}"},
}


@pytest.fixture(scope="module")
def described(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key, short answers, and engines that outlive all requests."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"ada {KEY}\n")
    options = (
        "--api-key-file",
        str(keys),
        "--context",
        "128",
        "--slots",
        "4",
        "--threads",
        "2",
        "--engine",
        "llamacpp",
    )
    with serving(store, *options) as running:
        before = running.engines()
        yield running
        assert running.engines() == before
        assert running.log.count(" 200 ") > 50  # not everything was refused
        assert "Traceback" not in running.log


schema = schemathesis.openapi.from_dict(DESCRIPTION, config=Config.from_dict(CONFIG))


def test_the_server_serves_this_description(described: Served) -> None:
    with urllib.request.urlopen(f"{described.url}/openapi.json", timeout=10) as answer:
        assert json.load(answer) == DESCRIPTION


@schema.parametrize()
@settings(deadline=None)
def test_the_server_is_as_it_describes_itself(case: Case, described: Served) -> None:
    is_allowed = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    if is_allowed and isinstance(case.body, dict):
        # an accepted request costs its tokens: their bounds are compared in tests/server/test_openapi.py
        kept = {name: value for name, value in case.body.items() if name not in TOKEN_LIMIT_FIELDS}
        case.body = kept | {"model": "tuned", "max_tokens": 1}
    answer = case.call_and_validate(base_url=described.url, timeout=60)
    if is_allowed:
        refusal = answer.json()["error"] if answer.status_code == 400 else {}
        assert not refusal.get("param")
