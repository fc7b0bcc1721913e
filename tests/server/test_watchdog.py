"""Engines that hang or leave something behind, with the watch's times shortened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from aiohttp import ClientSession

from modelstore import Store
from server import supervise
from server.engine import EngineOptions
from server.llamacpp import LlamaCpp
from server.plan import Wish, plan_serving
from tests.server.conftest import ROOT
from tests.server.conftest import until as blocking_until


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


def test_it_ends_though_its_cancellation_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As asyncio.wait_for of Python 3.11 loses one that meets the end of its time."""

    async def scenario() -> None:
        plan = plan_serving(store, "current", Wish(LlamaCpp(), EngineOptions(threads=1)))
        async with ClientSession() as session:
            engine = supervise.Engine(plan.engines[0], session)
            asked = asyncio.Event()

            async def loses_it() -> str:
                asked.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(30)
                return ""

            monkeypatch.setattr(engine, "_fault", loses_it)
            engine.start()
            await asked.wait()
            await asyncio.wait_for(engine.stop(), 10)

    asyncio.run(scenario())


def test_a_start_that_hangs_is_ended_at_its_limit(store: Store) -> None:
    async def scenario() -> None:
        plan = plan_serving(store, "current", Wish(LlamaCpp(), EngineOptions(threads=1))).engines[0]
        async with ClientSession() as session:
            engine = supervise.Engine(replace(plan, argv=["sleep", "60"], start_limit_s=0.5), session)
            engine.start()
            try:
                await asyncio.wait_for(engine.cannot_start.wait(), 10)
                assert "the limit for a model of its size" in engine.why_not_ready
                process = engine._process
                assert process is not None
                assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL
            finally:
                await engine.stop()

    asyncio.run(scenario())


PARENT = """
import subprocess, sys
argv = [sys.executable, "-m", "server.keeper", "sh", "-c", "sleep 300 & sleep 301"]
print(subprocess.Popen(argv, start_new_session=True).pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", ["the server", "the engine"])
def test_what_an_engine_started_does_not_outlive(killed: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    blocking_until(lambda: len(members(group)) == 4)  # keeper, sh and the two
    try:
        os.kill(parent.pid if killed == "the server" else members(group)["sh"], signal.SIGKILL)
        blocking_until(lambda: not members(group))
    finally:
        parent.kill()
        parent.communicate()


def members(group: int) -> dict[str, int]:
    """Command -> process id, of the living processes of a group."""
    said = subprocess.run(["ps", "-eo", "pid=,pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in said.splitlines()]
    found = [(args, int(pid)) for pid, pgid, state, args in rows if int(pgid) == group and not state.startswith("Z")]
    return {args if args.startswith("sleep") else args.split()[0]: pid for args, pid in found}
