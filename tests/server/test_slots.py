"""Which slots requests are put into: the choice by itself, and what a real engine does with it."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from server.slots import LEAVES_S, READS_S, Slots
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


@pytest.mark.parametrize("as_body", [asks, lambda text: {"prompt": text}], ids=["chat", "completion"])
def test_prompts_that_begin_with_the_same_document_share_its_slot(as_body: Callable[[str], dict[str, Any]]) -> None:
    slots, documents = Slots(4), ["manual " * 300, "handbook " * 300]
    put = []
    for question in ("who?", "where, and when?", "why?"):
        for document in documents:
            with slots.taking(as_body(document + question)) as where:
                put.append(where["id_slot"])
    assert put == [0, 1] * 3
    # a word in common decides nothing: the slot that was idle longest
    with slots.taking(as_body("manual work " + "by night " * 50)) as where:
        assert where == {"id_slot": 2}


def test_nobody_is_told_a_slot_while_the_engine_has_chosen_any() -> None:
    slots, ends = Slots(2), [ExitStack() for _ in range(5)]
    assert taken(slots, ends[0], asks("a")) == 0
    assert taken(slots, ends[1], asks("b")) == 1
    assert 0 < slots.wait_s() <= READS_S
    assert taken(slots, ends[2], asks("waits for the first that comes free")) is None
    ends[0].close()
    assert taken(slots, ends[3], asks("slot 0 may be the waiting one's")) is None
    ends[2].close()
    assert taken(slots, ends[4], asks("or of the one after")) is None
    for end in (ends[3], ends[4]):
        end.close()
    assert taken(slots, ends[0], asks("surely free")) == 0
    for end in ends:
        end.close()


@pytest.mark.parametrize("several", [{"prompt": ["one", "two"]}, {"prompt": [[1], [2]]}, asks("x", n=2)])
def test_several_sequences_get_slots_of_the_engines_choice(several: dict[str, Any]) -> None:
    slots, around = Slots(4), ExitStack()
    with around:
        assert taken(slots, around, {"prompt": [1, 2, 3]}) == 0
        with slots.taking(several) as where, slots.taking(asks("beside them")) as beside:
            assert where == beside == {}
        assert taken(slots, around, {"prompt": "after them", "n": 1.0}) == 1


def test_a_slot_that_a_client_left_is_not_told_while_the_engine_may_still_compute(
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
        with pytest.raises(ConnectionError), slots.taking(asks("there is no other")) as where:
            assert where == {}
            raise ConnectionError
        now += LEAVES_S - 0.1
        assert taken(slots, around, asks("that one was left too")) is None
        now += 0.2
        assert taken(slots, around, asks("f")) is None  # the one before is still open


def test_an_engine_without_slots_is_asked_as_the_client_asks() -> None:
    slots = Slots(0)
    with slots.taking(asks("a")) as where:
        assert where == {}
        assert slots.wait_s() == 0


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


def long_prompt(seed: int) -> str:
    """Of which the system's turn is less than a tenth: above that the engine prefers a slot that holds it."""
    return " ".join(random.Random(seed).choices(("red", "house", "river", "stone", "door", "bird"), k=400))


def test_a_real_engine_computes_streams_beside_each_other(served: Served) -> None:
    """After slots with even numbers have been idle longest, of which the engine would take three."""
    time.sleep(LEAVES_S)  # other tests leave streams
    by_slot: dict[int, openai.Stream[Any]] = {}
    for n in range(8):
        stream = ask(served, long_prompt(n), 1500)
        next(iter(stream))
        (slot,) = set(at_work(served)) - by_slot.keys()
        by_slot[slot] = stream
    for parity in (0, 1):
        for slot in range(parity, 8, 2):
            by_slot.pop(slot).close()
        until(lambda: set(at_work(served)) == by_slot.keys())
    time.sleep(LEAVES_S)
    running = [ask(served, long_prompt(8 + n), 1500) for n in range(3)]
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
    until(lambda: at_work(served) == taken_by_first)
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


def test_more_streams_than_slots_at_once_all_begin_when_a_short_one_ends(served: Served) -> None:
    """A short answer and eight long ones for eight slots: who waits, waits for the short one."""
    for _ in range(3):
        began, short = time.monotonic(), ask(served, "A short story", 30)
        with ThreadPoolExecutor(8) as pool:
            running = list(pool.map(lambda number: ask(served, f"Story {number}", 1500), range(8)))
            assert len(list(pool.map(lambda stream: next(iter(stream)), running))) == 8
        took_s = time.monotonic() - began
        assert len(list(short)) > 1
        for stream in running:
            stream.close()
        assert took_s < 40  # two slow processors need minutes for a long one
        until(lambda: not at_work(served), 30)
