"""A run on its engines, and the change from one run to the next without losing a request."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.engine import EnginePlan, ServedModel
from server.plan import ServePlan
from server.supervise import Engine, EngineFailed

RETIRE_S = 900.0  # what the requests of the run before may still take; a slot's context bounds them far below


class Release:
    """A run, its base, the engines of both, and the requests that they are answering."""

    def __init__(self, plan: ServePlan, engines: tuple[Engine, ...]) -> None:
        self.plan = plan
        self.engines = engines
        # the names of this plan: a shared engine was started under the names of another
        pairs = [(model, engine) for entry, engine in zip(plan.engines, engines, strict=True) for model in entry.models]
        self._by_name = {name: (model, engine) for model, engine in pairs for name in model.names}
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def id(self) -> str:
        """The run's."""
        return self.plan.run.id

    @property
    def models(self) -> list[ServedModel]:
        """Tuned and base."""
        return [model for entry in self.plan.engines for model in entry.models]

    @property
    def why_not_ready(self) -> dict[str, str]:
        """Role -> reason, of the engines that do not generate."""
        return {engine.plan.title: engine.why_not_ready for engine in self.engines if not engine.is_ready}

    def find(self, name: str) -> tuple[ServedModel, Engine] | None:
        """The model that a request calls by this name, and who answers for it."""
        return self._by_name.get(name)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around each request, so that the engines outlive it."""
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def finished(self, limit_s: float) -> None:
        """Wait for the requests that are being answered."""
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            print(f"{self.id}: {self._open} requests cut off after {limit_s:g} s", file=sys.stderr, flush=True)


class Releases:
    """The release that answers new requests, and those before it that still finish theirs."""

    def __init__(self, start: Callable[[EnginePlan], Engine], plan: ServePlan) -> None:
        self._new_engine = start
        self.current = Release(plan, tuple(start(entry) for entry in plan.engines))
        self.coming: Release | None = None
        self.switches = {"done": 0, "refused": 0}
        self._retiring: dict[Release, asyncio.Task[None]] = {}

    @property
    def engines(self) -> list[Engine]:
        """Of the current release, of the one that starts and of those that finish, each once."""
        return list(dict.fromkeys(engine for release in self._alive for engine in release.engines))

    @property
    def _alive(self) -> tuple[Release, ...]:
        return (self.current, *filter(None, [self.coming]), *self._retiring)

    async def switch(self, plan: ServePlan) -> None:
        """Start what `plan` needs beside what runs, prove it, turn new requests to it, let the old ones finish.

        Raises EngineFailed, and everything stays as it was, when the new engines do not come to generate.
        """
        running = {engine.plan.identity: engine for engine in self.engines}
        engines = tuple(running.get(entry.identity) or self._new_engine(entry) for entry in plan.engines)
        started = [engine for engine in engines if engine not in running.values()]
        self.coming = Release(plan, engines)
        try:
            await until_ready(started)
            for entry, engine in zip(plan.engines, engines, strict=True):
                await engine.adopt(entry.models)
        except BaseException:
            self.coming = None
            self.switches["refused"] += 1
            await asyncio.gather(*(engine.stop() for engine in started))
            raise
        before, self.current, self.coming = self.current, self.coming, None
        self._retiring[before] = asyncio.create_task(self._retire(before))
        self.switches["done"] += 1

    async def _retire(self, release: Release) -> None:
        await release.finished(RETIRE_S)
        del self._retiring[release]
        used = {model.id for other in self._alive for model in other.models}
        unused = tuple(model for model in release.models if model.id not in used)
        still_used = self.engines
        for engine in release.engines:
            if engine in still_used:
                await engine.forget(tuple(model for model in unused if model in engine.models))
            else:
                await engine.stop()

    async def stop(self) -> None:
        """End every engine."""
        engines, retiring = self.engines, list(self._retiring.values())
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        await asyncio.gather(*(engine.stop() for engine in engines))


async def until_ready(engines: list[Engine]) -> None:
    """Returns when all generate; raises EngineFailed for the first that cannot."""
    for engine in engines:
        while not engine.is_ready:
            for other in engines:
                if other.cannot_start.is_set():
                    raise EngineFailed(f"the engine of '{other.plan.title}' {other.why_not_ready}")
            await asyncio.sleep(0.05)
