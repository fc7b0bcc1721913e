"""The description of the endpoint is what the gateway enforces: no field or bound is in only one of the two."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from server.errors import ApiError
from server.gateway import Gateway
from server.openapi import chat_request, description, text_request
from server.validation import MAX_PROMPTS, RANGES, TOKEN_LIMIT_FIELDS, Limits, check_request

LIMITS = Limits(context_tokens=128, slots=4)
CHAT, TEXT = Draft202012Validator(chat_request(LIMITS)), Draft202012Validator(text_request(LIMITS))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-2.001, -2, -1, 0, 0.5, 1, 1.0, 2, 2.001, 4, 5, 20, 21, 128, 129]),
    st.text(max_size=3),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": SCALARS}) | VALUES
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.just("user") | VALUES, "content": st.lists(PARTS, max_size=2) | VALUES}
    )
    | VALUES,
    max_size=2,
)
PROMPTS = st.one_of(
    VALUES, st.lists(st.integers(-1, 9), max_size=3), st.lists(st.text(max_size=2) | st.lists(SCALARS), max_size=3)
)
NAMES = ("n", "stream", "stop", "tools", *TOKEN_LIMIT_FIELDS, *RANGES)
OPTIONS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2)


def is_accepted(body: dict[str, Any], is_chat: bool) -> bool:
    try:
        check_request(body, LIMITS, is_chat)
    except ApiError:
        return False
    return True


@settings(max_examples=400, deadline=None, derandomize=True)
@given(options=OPTIONS, messages=MESSAGES | VALUES)
def test_a_chat_is_accepted_exactly_if_the_schema_allows_it(options: dict[str, Any], messages: Any) -> None:
    body = {"messages": messages} | options
    assert is_accepted(body, is_chat=True) == CHAT.is_valid(body), body


@settings(max_examples=400, deadline=None, derandomize=True)
@given(options=OPTIONS, prompt=PROMPTS)
def test_a_completion_is_accepted_exactly_if_the_schema_allows_it(options: dict[str, Any], prompt: Any) -> None:
    body = {"prompt": prompt} | {name: value for name, value in options.items() if name != "tools"}
    assert is_accepted(body, is_chat=False) == TEXT.is_valid(body), body


@pytest.mark.parametrize("value", [None, True, "1", 0, 1, 1.0, 4, 5, 20, 21, 128, 129, 2, 2.1, -0.1, -2, -2.1, 1e308])
@pytest.mark.parametrize("name", NAMES)
def test_every_bound_is_the_same_on_both_sides(name: str, value: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], name: value}
    assert is_accepted(body, is_chat=True) == CHAT.is_valid(body)


@pytest.mark.parametrize("entry", ["a", 1, [1, 2]])
@pytest.mark.parametrize("count", [1, MAX_PROMPTS, MAX_PROMPTS + 1])
def test_so_many_prompts_at_once(entry: Any, count: int) -> None:
    body = {"prompt": [entry] * count}
    assert is_accepted(body, is_chat=False) == TEXT.is_valid(body) == (count <= MAX_PROMPTS or entry == 1)


def test_every_route_is_described_and_nothing_else() -> None:
    releases = SimpleNamespace(current=SimpleNamespace(plan=SimpleNamespace(limits=LIMITS)))
    answered = Gateway(cast(Any, releases), cast(Any, None), cast(Any, None)).routes()
    routes = {(path, method) for path, methods in answered.items() for method in methods}
    paths = description(LIMITS, needs_key=True)["paths"]
    described = {(path, method.upper()) for path, operations in paths.items() for method in operations}
    assert {(path, method) for path, method in routes if method != "HEAD"} == described
    json.dumps(description(LIMITS, needs_key=True), allow_nan=False)
