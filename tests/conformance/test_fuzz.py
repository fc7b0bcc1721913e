"""Generated values of what the description leaves to the engine: the answer is a refusal or a completion, never a 5xx.

test_description.py generates everything that the description names.

TUNESHIP_TEST_LONG=1 generates forty times as many.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.server.conftest import Served

EXAMPLES = 1200 if os.environ.get("TUNESHIP_TEST_LONG") == "1" else 30
GENERATED = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)
FIELDS = """
model stream stream_options n stop seed temperature top_p top_k min_p typical_p presence_penalty
frequency_penalty repeat_penalty repeat_last_n dry_multiplier dry_base dry_sequence_breakers mirostat
mirostat_tau xtc_probability logit_bias logprobs top_logprobs n_probs min_keep n_keep n_discard id_slot
cache_prompt return_tokens samplers ignore_eos t_max_predict_ms n_indent grammar json_schema response_format
tools tool_choice parallel_tool_calls lora timings_per_token post_sampling_probs return_progress
chat_template_kwargs reasoning_format add_generation_prompt max_completion_tokens n_predict max_tokens user
echo best_of suffix metadata
""".split()  # noqa: SIM905  sixty lines otherwise
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**31, -(2**31) - 1, 2**63, 2**64, -(2**63), 1e308, -1e308, 5e-324, 10**30])
)
TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["tuned", "base", "\ud800", "\x00", "json_object", "root ::= root"])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | TEXTS
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": st.none() | TEXTS}, optional={"tool_calls": VALUES}),
    min_size=1,
    max_size=4,
)
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True, scope="module")
def engines_that_live(served: Served) -> Iterator[None]:
    """No request may end an engine."""
    before = served.engines()
    yield
    assert served.engines() == before
    assert "Traceback" not in served.log


def ask(served: Served, path: str, body: object) -> None:
    """A refusal or an answer, each in its shape."""
    request = urllib.request.Request(f"{served.url}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read()
            assert text.startswith(b"data: ") or "choices" in json.loads(text)
    except urllib.error.HTTPError as error:
        document = json.load(error)["error"]
        assert error.code in (400, 404, 413), (error.code, document)
        assert set(document) == {"message", "type", "param", "code"}
        assert document["message"]


@GENERATED
@given(wishes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=4))
def test_absurd_parameters_of_a_chat(served: Served, wishes: dict[str, Any]) -> None:
    ask(served, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1} | wishes)


@GENERATED
@given(wishes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=4))
def test_absurd_parameters_of_a_completion(served: Served, wishes: dict[str, Any]) -> None:
    ask(served, "/v1/completions", {"prompt": "Hi", "max_tokens": 1} | wishes)


@GENERATED
@given(messages=MESSAGES)
@example(messages=[{"role": "tool", "content": "x"}])
def test_absurd_messages(served: Served, messages: list[dict[str, Any]]) -> None:
    ask(served, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
