"""Which slots requests are put into: the choice by itself, and what a real engine does with it."""

from __future__ import annotations

import json
import random
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from server.slots import LEAVES_S, Slots
from tests.server.conftest import Served, until


def asks(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **more}


def taken(slots: Slots, around: ExitStack, body: dict[str, Any]) -> int | None:
    return around.enter_context(slots.taking(body)).get("id_slot")


def test_streams_are_put_beside_each_other_and_into_gaps() -> None:
    slots, outer = Slots(8, 1000), ExitStack()
    ends = [ExitStack() for _ in range(4)]
    with outer:
        assert [taken(slots, end, asks(f"question {n}")) for n, end in enumerate(ends)] == [0, 1, 2, 3]
        ends[1].close()
        assert taken(slots, outer, asks("fills the gap")) == 1
        ends[3].close()
        ends[0].close()
        assert taken(slots, outer, asks("either side")) == 4 - 1  # 0 and 3 touch; 3 was idle longer
    for end in ends:
        end.close()


def test_random_streams_stay_together() -> None:
    """Eight streams of 64 slots that come and go: passes for a token, against the engine's own choice."""
    rng, slots, open_, passes = random.Random(3), Slots(64, 1000), dict[int, ExitStack](), list[int]()
    for step in range(4000):
        if len(open_) < 8 and (not open_ or rng.random() < 0.6):
            around = ExitStack()
            open_[taken(slots, around, asks(str(step))) or 0] = around
        else:
            open_.pop(rng.choice(list(open_))).close()
        passes.append(sum(slot - 1 not in open_ for slot in open_))
    assert sum(passes) / len(passes) < 2  # 4.4 where the slot is taken that was idle longest


def test_a_conversation_goes_on_where_it_was_unless_passes_cost_more() -> None:
    long, other = "x" * 900, "y" * 900
    for pass_costs, expected in ((500, 2), (2000, 1)):
        slots, around = Slots(8, pass_costs), ExitStack()
        with around:
            first, second, third = ExitStack(), ExitStack(), ExitStack()
            assert [
                taken(slots, each, asks(text)) for each, text in ((first, other), (second, "s"), (third, long))
            ] == [
                0,
                1,
                2,
            ]
            second.close()
            third.close()
            # slot 2 holds this conversation, slot 1 is beside the one at work
            assert taken(slots, around, asks(long, "and then?")) == expected
            first.close()


def test_who_waits_gets_the_slot_that_comes_free_as_the_engine_gives_it() -> None:
    slots, around, first = Slots(2), ExitStack(), ExitStack()
    with around:
        assert taken(slots, first, asks("a")) == 0
        assert taken(slots, around, asks("b")) == 1
        waiting, late = ExitStack(), ExitStack()
        assert taken(slots, waiting, asks("c")) is None
        assert taken(slots, late, asks("d")) is None
        first.close()  # the engine gives slot 0 to c
        late.close()  # d's client left
        assert taken(slots, around, asks("e")) is None
        waiting.close()  # and now to e, who came next
        assert taken(slots, around, asks("f")) is None


def test_a_slot_that_a_client_left_is_not_given_away_while_the_engine_may_still_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("server.slots.time.monotonic", lambda: now)
    slots, around, left = Slots(4, 1000), ExitStack(), ExitStack()
    with around:
        assert taken(slots, around, asks("a")) == 0
        with pytest.raises(ConnectionError), left:
            assert taken(slots, left, asks("b")) == 1
            raise ConnectionError
        assert taken(slots, around, asks("c")) == 2
        now += LEAVES_S
        assert taken(slots, around, asks("d")) == 1
        with pytest.raises(ConnectionError), left:
            assert taken(slots, left, asks("e")) == 3
            raise ConnectionError
        assert taken(slots, around, asks("there is no other")) == 3


def test_several_prompts_take_several_slots_of_the_engines_choice() -> None:
    slots, around = Slots(4), ExitStack()
    with around:
        assert taken(slots, around, {"prompt": ["one", "two"]}) is None
        assert taken(slots, around, {"prompt": [1, 2, 3]}) == 2
        assert taken(slots, around, {"prompt": "four"}) == 3
        assert taken(slots, around, {"prompt": "waits"}) is None
    with slots.taking(asks("x", n=3)) as first, slots.taking(asks("y")) as second, slots.taking(asks("z")) as third:
        assert (first["id_slot"], second["id_slot"]) == (3, 2)
        assert third == {}
    with slots.taking({"prompt": ["p"] * 100}) as everything:
        assert everything == {}
    with slots.taking(asks("after")) as where:
        assert where


def test_an_engine_without_slots_is_asked_as_the_client_asks() -> None:
    with Slots(0).taking(asks("a")) as where:
        assert where == {}


def at_work(served: Served) -> list[int]:
    """Slots of the tuned model's engine that compute, as the engine says itself."""
    pid = served.engines()[0]
    argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    key = next(entry.partition("=")[2] for entry in environment if entry.startswith("LLAMA_API_KEY="))
    url = f"http://127.0.0.1:{argv[argv.index('--port') + 1]}/slots"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})) as answer:
        return [slot["id"] for slot in json.load(answer) if slot["is_processing"]]


def ask(served: Served, text: str, tokens: int, **more: Any) -> openai.Stream[Any]:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
    turn: Any = [{"role": "user", "content": text}]
    extra = {"ignore_eos": True, **more}
    return client.chat.completions.create(
        model="tuned", messages=turn, max_tokens=tokens, stream=True, extra_body=extra
    )


def test_a_real_engine_computes_streams_beside_each_other(served: Served) -> None:
    streams = [ask(served, f"{n} colours?", 12) for n in range(8)]  # every slot has been used
    for stream in streams:
        list(stream)
    for n in (1, 2, 3):
        list(ask(served, f"{n} more colours?", 4))
    # one by one, the engine's own choice would be three slots wherever they were idle longest
    running = [ask(served, f"A long story of {n} animals.", 1500) for n in range(3)]
    for stream in running:
        next(iter(stream))
    slots = at_work(served)
    for stream in running:
        stream.close()
    assert slots == list(range(slots[0], slots[0] + 3))
    until(lambda: not at_work(served))


def test_a_clients_own_slot_cannot_touch_the_stream_of_another(served: Served) -> None:
    """In llama.cpp with a cache for prompts, a request for a slot at work may replace what that slot computes on."""
    first = ask(served, "Tell me of rivers.", 1500, id_slot=0)
    next(iter(first))
    taken_by_first = at_work(served)
    second = ask(served, "Tell me of rivers, of seas, and of lakes.", 4, id_slot=taken_by_first[0])
    assert len(list(second)) > 1  # and did not wait for the first to end
    assert taken_by_first == at_work(served)
    first.close()
    until(lambda: not at_work(served))


def test_a_slot_that_is_left_and_asked_for_at_once_serves_the_next(served: Served) -> None:
    """A client that leaves frees its slot here before the engine knows: the next request waits for that moment only."""
    for turn in range(6):
        left = ask(served, f"Story {turn}", 1500)
        next(iter(left))
        left.close()
        assert len(list(ask(served, f"And {turn}?", 3))) > 1
    until(lambda: not at_work(served))
