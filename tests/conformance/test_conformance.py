"""The endpoint as OpenAI's own client sees it: one file for both engines; `differs` says what is not equal."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from modelstore import Store
from tests.conformance.conftest import ENGINE
from tests.server.conftest import RUN_ID, Served

QUESTION: Any = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


def ask(client: openai.OpenAI, model: str = "tuned", **wishes: Any) -> Any:
    wishes = {"messages": QUESTION, "max_tokens": 8, "temperature": 0} | wishes
    return client.chat.completions.create(model=model, **wishes)


def differs(llamacpp: Any, vllm: Any) -> Any:
    """What each engine does where the endpoint cannot make them equal; docs/serving.md has the table."""
    return {"llamacpp": llamacpp, "vllm": vllm}[ENGINE]


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, document and headers of a request that the client would not send."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


def test_models_are_the_run_and_its_two_aliases(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [RUN_ID, "tuned", "base"]


@pytest.mark.parametrize(("asked", "answers"), [("tuned", RUN_ID), (RUN_ID, RUN_ID), ("base", "base")])
def test_the_answer_says_which_model_gave_it(client: openai.OpenAI, asked: str, answers: str) -> None:
    reply = ask(client, asked)
    assert (reply.model, reply.choices[0].finish_reason, reply.usage.completion_tokens) == (answers, "length", 8)


def test_a_request_without_a_model_goes_to_the_tuned_one(served: Served) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 1}).encode()
    status, document, _ = post(f"{served.url}/v1/chat/completions", body)
    assert (status, document["model"]) == (200, RUN_ID)


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="base", prompt="One, two, three,", max_tokens=4, temperature=0)
    assert reply.choices[0].text
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4


def test_a_stream_carries_the_same_text_and_the_usage(client: openai.OpenAI) -> None:
    wish: Any = {"max_tokens": 24, "extra_body": {"ignore_eos": True}}
    whole = ask(client, **wish).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **wish))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole
    assert chunks[-1].usage.completion_tokens == 24
    assert sum(bool(chunk.choices) for chunk in chunks) > 6  # arrives in pieces


def test_stop_seed_logprobs_and_schema(client: openai.OpenAI) -> None:
    counting: Any = {"prompt": "1, 2, 3, 4, 5, 6,", "model": "base", "temperature": 0, "max_tokens": 24}
    assert "9" not in client.completions.create(**counting, stop=["9"]).choices[0].text
    drawn = [ask(client, temperature=1.5, seed=7, max_tokens=12).choices[0].message.content for _ in range(2)]
    assert drawn[0] == drawn[1]
    likely = ask(client, logprobs=True, top_logprobs=3, max_tokens=2).choices[0].logprobs.content
    assert len(likely) == 2
    assert len(likely[0].top_logprobs) == 3
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    wish = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert json.loads(ask(client, response_format=wish, max_tokens=60).choices[0].message.content)["colour"]


@pytest.mark.parametrize(
    ("error", "code", "wishes"),
    [
        (openai.NotFoundError, "model_not_found", {"model": "gpt-9"}),
        (
            openai.BadRequestError,
            "context_length_exceeded",
            {"messages": [{"role": "user", "content": "word " * 9000}]},
        ),
        (openai.BadRequestError, "context_length_exceeded", {"messages": QUESTION * 900, "stream": True}),
        *((openai.BadRequestError, None, {"max_tokens": value}) for value in (0, -5, 10**9, "5", True, 1.5)),
        (openai.BadRequestError, None, {"max_completion_tokens": 0}),
        (openai.BadRequestError, None, {"n": 1000}),
        (openai.BadRequestError, None, {"messages": []}),
        (openai.BadRequestError, None, {"messages": "Hi"}),
        (openai.BadRequestError, None, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (openai.BadRequestError, None, {"temperature": "hot"}),
        (openai.BadRequestError, None, {"stop": 5}),
        (openai.BadRequestError, None, {"extra_body": {"tools": 5}}),
        (openai.BadRequestError, None, {"extra_body": {"stream": "yes"}}),
    ],
)
def test_mistakes_are_refused_in_one_shape(
    client: openai.OpenAI, error: type[openai.APIStatusError], code: str | None, wishes: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        ask(client, wishes.pop("model", "tuned"), **wishes)
    document = caught.value.response.json()["error"]
    assert set(document) == {"message", "type", "param", "code"}
    assert document["code"] == code
    assert len(document["message"]) > 15


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"n": NaN}', b"[" * 100_000, b"\xff", b"", b'"tuned"'])
def test_malformed_json_is_refused(served: Served, body: bytes) -> None:
    status, document, _ = post(f"{served.url}/v1/chat/completions", body)
    assert (status, document["error"]["type"]) == (400, "invalid_request_error")


def test_a_large_body_is_refused_before_an_engine_sees_it(served: Served) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "word " * 1_000_000}]}).encode()
    status, document, _ = post(f"{served.url}/v1/chat/completions", body)
    assert status == 413
    assert "bytes" in document["error"]["message"]


def test_what_is_not_served_is_refused_cleanly(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tuned", input="Hi")
    status, document, headers = post(f"{served.url}/v1/models", b"{}")
    assert (status, set(document["error"])) == (405, {"message", "type", "param", "code"})
    assert headers["Allow"] == "GET,HEAD"
    status, document, _ = post(f"{served.url}/v1/models/", b"{}")
    assert (status, set(document["error"])) == (404, {"message", "type", "param", "code"})


def test_a_head_comes_without_a_body(served: Served) -> None:
    request = urllib.request.Request(f"{served.url}/v1/models", method="HEAD")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert (answer.status, answer.read()) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0


def test_request_ids_come_back_and_hostile_ones_do_not(served: Served) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 1}).encode()
    url = f"{served.url}/v1/chat/completions"
    assert post(url, body, **{"x-request-id": "my-id.1"})[2]["x-request-id"] == "my-id.1"
    assert len(post(url, body, **{"x-request-id": "a key=root 200"})[2]["x-request-id"]) == 32
    assert "x-request-id" in post(url, b"{")[2]


def test_other_origins_get_no_permission(served: Served) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 1}).encode()
    headers = post(f"{served.url}/v1/chat/completions", body, Origin="http://elsewhere.example")[2]
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_eight_streams_complete_on_each_model(client: openai.OpenAI) -> None:
    def stream(index: int) -> str | None:
        messages = [{"role": "user", "content": f"Tell me something about the number {index}."}]
        chunks = list(ask(client, ("tuned", "base")[index % 2], messages=messages, max_tokens=16, stream=True))
        return str(chunks[-1].choices[0].finish_reason)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(stream, range(16))) <= {"length", "stop"}


def test_a_client_that_leaves_frees_its_slot(client: openai.OpenAI, served: Served) -> None:
    stream = ask(client, max_tokens=2000, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    waiting = threading.Event()
    for _ in range(100):
        if processing(served) == 0:
            return
        waiting.wait(0.05)
    raise AssertionError("the engine goes on generating for nobody")


def processing(served: Served) -> float:
    samples = [line for line in metrics(served).splitlines() if line.startswith("tuneship_requests_running{")]
    return sum(float(line.split()[-1]) for line in samples)


def metrics(served: Served) -> str:
    with urllib.request.urlopen(f"{served.url}/metrics") as answer:
        return str(answer.read().decode())


def test_metrics_of_both_models_and_the_gateway(served: Served, store: Store, client: openai.OpenAI) -> None:
    ask(client, max_tokens=1)
    text = metrics(served)
    for model, served_id in (("tuned", RUN_ID), ("base", store.bases()[0].id)):
        labels = f'{{model="{model}",run="{served_id}"'
        assert f"tuneship_ready{labels}}} 1" in text
        for name in ("tuneship_generated_tokens_total", "tuneship_requests_running", "tuneship_requests_waiting"):
            assert f"{name}{labels}}} " in text
        own = differs("llamacpp:tokens_predicted_total", "vllm:generation_tokens_total")
        assert f"{own}{labels}" in text
        assert text.count(f"# TYPE {own} counter") == 1
    assert f'tuneship_requests_total{{model="tuned",run="{RUN_ID}",code="200"}}' in text


def test_the_log_has_requests_but_no_prompts(served: Served, client: openai.OpenAI) -> None:
    ask(client, messages=[{"role": "user", "content": "xyzzy-secret"}])
    post(f"{served.url}/v1/chat/completions", b'{"messages":[{"role":"user","content":"xyzzy-secret \\ud800"}]}')
    assert f"POST '/v1/chat/completions' model=tuned run={RUN_ID} 200" in served.log
    assert "xyzzy" not in served.log


def test_several_choices(client: openai.OpenAI) -> None:
    reply = ask(client, n=2, temperature=1, max_tokens=4)
    assert [choice.index for choice in reply.choices] == [0, 1]


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    wish: Any = {"model": "base", "prompt": "One, two,", "max_tokens": 2, "temperature": 0}
    logprobs = client.completions.create(**wish, logprobs=2).choices[0].logprobs
    assert bool(logprobs.token_logprobs) == differs(False, True)


def test_echo(client: openai.OpenAI) -> None:
    wish: Any = {"model": "base", "prompt": "One, two,", "max_tokens": 2, "temperature": 0}
    text = client.completions.create(**wish, echo=True).choices[0].text
    assert text.startswith("One, two,") == differs(False, True)


def test_more_tokens_than_the_context_has_left(client: openai.OpenAI) -> None:
    wishes: Any = {"max_tokens": 2048, "messages": [{"role": "user", "content": "Say yes. " * 640}]}
    reply = ask(client, **wishes)
    assert reply.choices[0].finish_reason in ("length", "stop")
    assert reply.usage.total_tokens <= 2048


def test_tools_where_the_template_has_none(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    if differs(True, False):
        assert ask(client, tools=[tool]).choices
        return
    with pytest.raises(openai.BadRequestError, match="tool"):
        ask(client, tools=[tool])
