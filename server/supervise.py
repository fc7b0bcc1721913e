"""Keeps the engines running, and knows whether they really generate."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from server.engine import EnginePlan, ServedModel
from server.quota import Seats
from server.slots import Slots
from server.template import is_template
from server.upstream import Upstream

if TYPE_CHECKING:
    from aiohttp import ClientSession

WATCH_S = 10.0  # between two proofs of a ready engine
EAGER_S = 0.1  # between two while it is starting
PROOF_TIMEOUT_S = 30.0
FAILED_PROOFS = 3  # a ready engine that fails so often in a row is restarted
MAX_BACKOFF_S = 30.0
PR_SET_PDEATHSIG = 1
TOO_SLOW = f"no token within {PROOF_TIMEOUT_S:g} s"
OTHER_TEMPLATE = "talks with another chat template than the one that the model was trained with"


class EngineFailed(Exception):
    """An engine cannot serve: it ended, hung or disagreed before it had generated anything."""


class Engine:
    """One engine process: started, proven, restarted when it dies or stops to generate."""

    def __init__(self, plan: EnginePlan, session: ClientSession) -> None:
        self.plan = plan
        self.upstream = Upstream(plan)
        self.models = plan.models  # newest first: adapters come and go while the engine runs
        self._loaded: set[str] = set()
        self.why_not_ready = "starting"
        self.was_ready = False  # since its last start
        self.cannot_start = asyncio.Event()
        self._started_at = 0.0
        self.restarts = -1
        self._ended = asyncio.Event()
        self.seats = Seats(plan.most_requests)
        self.slots = Slots(plan.slots, plan.pass_costs)
        self.last_output_at = 0.0  # time.monotonic(), set by whoever passes on what the engine generates
        self._session = session
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._is_ending = False

    @property
    def is_ready(self) -> bool:
        """Whether the last proof was a generated token."""
        return not self.why_not_ready

    def start(self) -> None:
        """Begin to run and to watch."""
        self._tasks = [asyncio.create_task(self._keep_running()), asyncio.create_task(self._keep_proving())]

    async def stop(self) -> None:
        """End the engine and its watch."""
        # a cancellation that meets the end of a time limit is lost (asyncio.wait_for in Python 3.11, aiohttp's timer)
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process and self._process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), self.plan.stop_limit_s)
            except TimeoutError:
                self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """To the engine and the workers that it started; the group is its own."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _keep_running(self) -> None:
        backoff_s = 0.5
        while True:
            self.restarts += 1
            began = self._started_at = time.monotonic()
            self._loaded.clear()
            keeper = [sys.executable, "-m", "server.keeper"] if self.plan.has_children else []
            self._process = await asyncio.create_subprocess_exec(
                *keeper,
                *self.plan.argv,
                env={**os.environ, **self.plan.environment},
                stdout=sys.stderr,
                stderr=sys.stderr,
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which drains first
                preexec_fn=_die_with_parent,
            )
            code = await self._process.wait()
            if not self.was_ready and self.restarts == 0:
                self._give_up(f"ended with code {code} before it generated anything; its last words stand above")
                return
            self.was_ready = False
            self._ended.set()
            self.why_not_ready = f"the engine ended with code {code} and is being restarted"
            print(f"{self.plan.title}: {self.why_not_ready}", file=sys.stderr, flush=True)
            backoff_s = 0.5 if time.monotonic() - began > 60 else min(2 * backoff_s, MAX_BACKOFF_S)
            await asyncio.sleep(backoff_s)

    def _give_up(self, why: str) -> None:
        if not self.cannot_start.is_set():
            self.why_not_ready = why
            self.cannot_start.set()

    async def _keep_proving(self) -> None:
        failures = 0
        while not self.cannot_start.is_set() and not self._is_ending:
            fault = await self._fault()
            failures = failures + 1 if fault and self.was_ready else 0
            self.was_ready = self.was_ready or not fault
            if not self.cannot_start.is_set():
                self.why_not_ready = fault
            if fault == OTHER_TEMPLATE:
                self._give_up(fault)
                break
            if failures >= FAILED_PROOFS:
                print(f"{self.plan.title}: {fault}, {failures} times in a row: restarting", file=sys.stderr, flush=True)
                self._signal(signal.SIGKILL)
            self._end_a_start_that_hangs()
            self._ended.clear()
            with contextlib.suppress(TimeoutError):  # an engine that ends is watched eagerly at once
                pause_s = WATCH_S if self.is_ready else EAGER_S if failures == 0 else 1.0
                await asyncio.wait_for(self._ended.wait(), pause_s)

    def _end_a_start_that_hangs(self) -> None:
        limit_s = self.plan.start_limit_s
        if self.was_ready or time.monotonic() - self._started_at < limit_s:
            return
        if self.restarts == 0:
            self._give_up(f"generated nothing within {limit_s:.0f} s, which is the limit for a model of its size")
        self._signal(signal.SIGKILL)

    async def _fault(self) -> str:
        """Why the engine is not ready. What clients receive is proof enough; being slow while at work is no fault."""
        if self.is_ready and time.monotonic() - self.last_output_at < WATCH_S:
            return ""
        before = await self._steps() if self.was_ready else 0
        fault = await self._prove()
        return "" if fault == TOO_SLOW and 0 < before < await self._steps() else fault

    async def metrics(self, timeout_s: float) -> str:
        """The engine's own metrics; empty when it does not answer in time."""
        from aiohttp import ClientError

        try:
            async with self._session.get(f"{self.plan.url}/metrics", **self._wish(timeout_s)) as reply:
                return await reply.text() if reply.status == 200 else ""
        except (ClientError, TimeoutError, ValueError, OSError):
            return ""

    async def _steps(self) -> int:
        """How many batches the engine has computed; 0 when it does not say."""
        found = self.plan.probes.steps.search(await self.metrics(PROOF_TIMEOUT_S))
        return int(found[1]) if found else 0

    async def _prove(self) -> str:
        """Empty after a generated token of a chat turn of each model; otherwise what went wrong."""
        from aiohttp import ClientError

        try:
            if not self.was_ready and (fault := await self._template_fault()):
                return fault
            for model in self.models:
                if fault := await self._load(model) or await self._prove_model(model):
                    return fault
            return ""
        except TimeoutError:
            return TOO_SLOW
        except (ClientError, ValueError, OSError) as error:
            return f"generation fails: {type(error).__name__}"

    async def _prove_model(self, model: ServedModel) -> str:
        turn = {"model": model.names[0], "messages": [{"role": "user", "content": "Hi"}]}
        wish: dict[str, Any] = {**turn, "max_tokens": 1, "temperature": 0}
        url = f"{self.plan.url}/v1/chat/completions"
        async with self._session.post(url, json=wish, **self._wish(PROOF_TIMEOUT_S)) as reply:
            told = await reply.json()
        made = (told.get("usage") or {}).get("completion_tokens", 0)
        return "" if reply.status == 200 and made else f"generation fails with status {reply.status}"

    async def adopt(self, models: tuple[ServedModel, ...]) -> None:
        """Serve these too. Raises EngineFailed, and serves what it served, when one does not come to generate."""
        from aiohttp import ClientError

        known = {model.id for model in self.models}
        new = tuple(model for model in models if model.id not in known)
        try:
            faults = [await self._load(model) or await self._prove_model(model) for model in new]
        except (ClientError, TimeoutError, ValueError, OSError) as error:
            faults = [f"generation fails: {type(error).__name__}"]
        if fault := "".join(faults):
            raise EngineFailed(f"the engine of '{self.plan.title}' cannot take it: {fault}")
        self.models = (*new, *self.models)

    async def forget(self, models: tuple[ServedModel, ...]) -> None:
        """These are asked for no more."""
        from aiohttp import ClientError

        self.models = tuple(model for model in self.models if model not in models)
        for model in models:
            self._loaded.discard(model.id)
            with contextlib.suppress(ClientError, TimeoutError, OSError):  # an engine that ended forgot it already
                await self._post("/v1/unload_lora_adapter", {"lora_name": model.names[0]})

    async def _load(self, model: ServedModel) -> str:
        """Empty when the model needs no adapter, or its adapter is in the engine; else what went wrong."""
        if model.adapter is None or model.id in self._loaded:
            return ""
        status = await self._post(
            "/v1/load_lora_adapter", {"lora_name": model.names[0], "lora_path": str(model.adapter)}
        )
        if status == 200:
            self._loaded.add(model.id)
        return "" if status == 200 else f"the adapter of {model.id} is refused with status {status}"

    async def _post(self, path: str, wish: dict[str, str]) -> int:
        async with self._session.post(f"{self.plan.url}{path}", json=wish, **self._wish(PROOF_TIMEOUT_S)) as reply:
            return reply.status

    async def _template_fault(self) -> str:
        """Empty when the engine tells the model's own template, or none at all by its nature."""
        path = self.plan.probes.template_path
        if not path:
            return ""
        async with self._session.get(f"{self.plan.url}{path}", **self._wish(PROOF_TIMEOUT_S)) as reply:
            if reply.status != 200:  # still loading: what it would say is not known yet
                return f"it does not tell its chat template, status {reply.status}"
            found = str((await reply.json()).get("chat_template", ""))
        return "" if is_template(found, self.plan.chat_template_sha256) else OTHER_TEMPLATE

    def _wish(self, timeout_s: float) -> dict[str, Any]:
        """Key and limit of a request of our own."""
        from aiohttp import ClientTimeout

        headers = {"Authorization": f"Bearer {self.plan.api_key}"}
        return {"headers": headers, "timeout": ClientTimeout(total=timeout_s)}


def _die_with_parent() -> None:
    """In the child: ask the kernel to end it when this server ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
