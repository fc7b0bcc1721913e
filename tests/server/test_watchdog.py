"""An engine that hangs, with the watch's times shortened."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest
from aiohttp import ClientSession

from modelstore import Store
from server import supervise
from server.engine import EngineOptions
from server.llamacpp import LlamaCpp
from server.plan import Wish, plan_serving


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "WATCH_S", 0.2)
    monkeypatch.setattr(supervise, "PROOF_TIMEOUT_S", 1.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_an_engine_that_hangs_is_not_ready_and_is_replaced(store: Store) -> None:
    async def scenario() -> None:
        plan = plan_serving(store, "current", Wish(LlamaCpp(), EngineOptions(threads=1)))
        async with ClientSession() as session:
            engine = supervise.Engine(plan.engines[0], session)
            engine.start()
            try:
                await until(lambda: engine.is_ready)
                process = engine._process
                assert process is not None
                os.kill(process.pid, signal.SIGSTOP)
                await until(lambda: not engine.is_ready)
                assert "no token" in engine.why_not_ready
                await until(lambda: engine.is_ready)
                assert engine.restarts == 1
                assert process.returncode == -signal.SIGKILL
            finally:
                await engine.stop()

    asyncio.run(scenario())


def test_an_engine_at_work_on_long_prompts_is_left_in_peace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        plan = plan_serving(store, "current", Wish(LlamaCpp(), EngineOptions(slots=1, threads=1)))
        async with ClientSession() as session:
            engine = supervise.Engine(plan.engines[0], session)
            engine.start()
            try:
                await until(lambda: engine.is_ready)
                body = {"prompt": "Once", "n_predict": 400, "ignore_eos": True}
                headers = {"Authorization": f"Bearer {engine.plan.api_key}"}
                # the only slot is taken for longer than three proofs may last, and nobody reports its output
                async with session.post(f"{engine.plan.url}/v1/completions", json=body, headers=headers) as reply:
                    assert reply.status == 200
                assert (engine.is_ready, engine.restarts) == (True, 0)
            finally:
                await engine.stop()

    monkeypatch.setattr(supervise, "PROOF_TIMEOUT_S", 0.4)
    asyncio.run(scenario())
