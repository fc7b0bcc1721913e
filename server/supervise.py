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

from server.plan import EnginePlan

if TYPE_CHECKING:
    from aiohttp import ClientSession

WATCH_S = 10.0  # between two proofs of a ready engine
EAGER_S = 0.1  # between two while it is starting
PROOF_TIMEOUT_S = 30.0
FAILED_PROOFS = 3  # a ready engine that fails so often in a row is restarted
MAX_BACKOFF_S = 30.0
PR_SET_PDEATHSIG = 1


class Engine:
    """One engine process: started, proven, restarted when it dies or stops to generate."""

    def __init__(self, plan: EnginePlan, session: ClientSession) -> None:
        self.plan = plan
        self.why_not_ready = "starting"
        self.was_ready = False
        self.restarts = -1
        self._session = session
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether the last proof was a generated token."""
        return not self.why_not_ready

    def start(self) -> None:
        """Begin to run and to watch."""
        self._tasks = [asyncio.create_task(self._keep_running()), asyncio.create_task(self._keep_proving())]

    async def stop(self) -> None:
        """End the engine and its watch."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()

    async def _keep_running(self) -> None:
        backoff_s = 0.5
        while True:
            self.restarts += 1
            began = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *self.plan.argv,
                env={**os.environ, **self.plan.environment},
                stdout=sys.stderr,
                stderr=sys.stderr,
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which drains first
                preexec_fn=_die_with_parent,
            )
            code = await self._process.wait()
            self.was_ready = False
            self.why_not_ready = f"the engine ended with code {code} and is being restarted"
            print(f"{self.plan.role}: {self.why_not_ready}", file=sys.stderr, flush=True)
            backoff_s = 0.5 if time.monotonic() - began > 60 else min(2 * backoff_s, MAX_BACKOFF_S)
            await asyncio.sleep(backoff_s)

    async def _keep_proving(self) -> None:
        failures = 0
        while True:
            fault = await self._prove()
            failures = failures + 1 if fault and self.was_ready else 0
            self.was_ready = self.was_ready or not fault
            self.why_not_ready = fault
            if failures >= FAILED_PROOFS and self._process and self._process.returncode is None:
                print(f"{self.plan.role}: {fault}, {failures} times in a row: restarting", file=sys.stderr, flush=True)
                self._process.kill()
            await asyncio.sleep(WATCH_S if self.is_ready else EAGER_S if failures == 0 else 1.0)

    async def _prove(self) -> str:
        """Empty after a generated token of a chat turn; otherwise what went wrong."""
        from aiohttp import ClientError, ClientTimeout

        wish: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.plan.api_key}"}
        url = f"{self.plan.url}/v1/chat/completions"
        try:
            limit = ClientTimeout(total=PROOF_TIMEOUT_S)
            async with self._session.post(url, json=wish, headers=headers, timeout=limit) as reply:
                told = await reply.json()
            made = told.get("usage", {}).get("completion_tokens", 0)
            return "" if reply.status == 200 and made else f"generation fails with status {reply.status}"
        except (ClientError, TimeoutError, ValueError, OSError) as error:
            return f"generation fails: {type(error).__name__}"


def _die_with_parent() -> None:
    """In the child: ask the kernel to end it when this server ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
