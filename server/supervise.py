"""Keeps the engines running, and knows whether they really generate."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import re
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
TOO_SLOW = f"no token within {PROOF_TIMEOUT_S:g} s"
BATCHES = re.compile(r"^llamacpp:n_decode_total (\d+)", re.MULTILINE)


class EngineFailed(Exception):
    """An engine ended before it had generated anything."""


class Engine:
    """One engine process: started, proven, restarted when it dies or stops to generate."""

    def __init__(self, plan: EnginePlan, session: ClientSession) -> None:
        self.plan = plan
        self.why_not_ready = "starting"
        self.was_ready = False  # since its last start
        self.cannot_start = asyncio.Event()
        self.restarts = -1
        self._ended = asyncio.Event()
        self.last_output_at = 0.0  # time.monotonic(), set by whoever passes on what the engine generates
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
            if not self.was_ready and self.restarts == 0:
                self.why_not_ready = f"ended with code {code} before it generated anything"
                self.cannot_start.set()
                return
            self.was_ready = False
            self._ended.set()
            self.why_not_ready = f"the engine ended with code {code} and is being restarted"
            print(f"{self.plan.role}: {self.why_not_ready}", file=sys.stderr, flush=True)
            backoff_s = 0.5 if time.monotonic() - began > 60 else min(2 * backoff_s, MAX_BACKOFF_S)
            await asyncio.sleep(backoff_s)

    async def _keep_proving(self) -> None:
        failures = 0
        while True:
            fault = await self._fault()
            failures = failures + 1 if fault and self.was_ready else 0
            self.was_ready = self.was_ready or not fault
            self.why_not_ready = fault
            if failures >= FAILED_PROOFS and self._process and self._process.returncode is None:
                print(f"{self.plan.role}: {fault}, {failures} times in a row: restarting", file=sys.stderr, flush=True)
                self._process.kill()
            self._ended.clear()
            with contextlib.suppress(TimeoutError):  # an engine that ends is watched eagerly at once
                pause_s = WATCH_S if self.is_ready else EAGER_S if failures == 0 else 1.0
                await asyncio.wait_for(self._ended.wait(), pause_s)

    async def _fault(self) -> str:
        """Why the engine is not ready. What clients receive is proof enough; being slow while at work is no fault."""
        if self.is_ready and time.monotonic() - self.last_output_at < WATCH_S:
            return ""
        before = await self._batches() if self.was_ready else 0
        fault = await self._prove()
        return "" if fault == TOO_SLOW and 0 < before < await self._batches() else fault

    async def _batches(self) -> int:
        """How many batches the engine has computed; 0 when it does not say."""
        from aiohttp import ClientError, ClientTimeout

        headers = {"Authorization": f"Bearer {self.plan.api_key}"}
        limit = ClientTimeout(total=PROOF_TIMEOUT_S)
        try:
            async with self._session.get(f"{self.plan.url}/metrics", headers=headers, timeout=limit) as reply:
                found = BATCHES.search(await reply.text())
                return int(found[1]) if found else 0
        except (ClientError, TimeoutError, ValueError, OSError):
            return 0

    async def _prove(self) -> str:
        """Empty after a generated token of a chat turn; otherwise what went wrong."""
        from aiohttp import ClientError, ClientTimeout

        wish: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.plan.api_key}"}
        url = f"{self.plan.url}/v1/chat/completions"
        limit = ClientTimeout(total=PROOF_TIMEOUT_S)
        try:
            if not self.was_ready:
                async with self._session.get(f"{self.plan.url}/props", headers=headers, timeout=limit) as reply:
                    properties = await reply.json()
                if reply.status == 200 and not _is_template(properties, self.plan.chat_template_sha256):
                    return "the engine uses another chat template than the one that the model was trained with"
            async with self._session.post(url, json=wish, headers=headers, timeout=limit) as reply:
                told = await reply.json()
            made = told.get("usage", {}).get("completion_tokens", 0)
            return "" if reply.status == 200 and made else f"generation fails with status {reply.status}"
        except TimeoutError:
            return TOO_SLOW
        except (ClientError, ValueError, OSError) as error:
            return f"generation fails: {type(error).__name__}"


def _is_template(properties: dict[str, Any], sha256: str) -> bool:
    """An engine without the model's own template takes another one and answers well-formed nonsense."""
    found = str(properties.get("chat_template", ""))
    # writers of GGUF files differ in whether they keep white space at the ends
    variants = (found, found.strip(), f"{found.strip()}\n")
    return not sha256 or sha256 in {hashlib.sha256(text.encode()).hexdigest() for text in variants}


def _die_with_parent() -> None:
    """In the child: ask the kernel to end it when this server ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
