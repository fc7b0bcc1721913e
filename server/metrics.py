"""Prometheus text: the engines' own metrics with labels, the same few for every engine, and the endpoint's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.supervise import Engine


@dataclass(frozen=True)
class EngineState:
    """One engine: labels, readiness, restarts, its own metrics, and its figures under common names."""

    labels: str
    is_ready: bool
    restarts: int
    text: str
    figures: Mapping[str, float]

    @classmethod
    def of(cls, engine: Engine, text: str) -> EngineState:
        """`text` is what the engine's own /metrics said."""
        plan = engine.plan
        labels = f'model="{plan.title}",run="{engine.models[0].id}"'
        names = {
            "tuneship_requests_running": plan.probes.running,
            "tuneship_requests_waiting": plan.probes.waiting,
            "tuneship_generated_tokens_total": plan.probes.generated,
        }
        found = {ours: _sum(text, theirs) for ours, theirs in names.items()}
        figures = {ours: figure for ours, figure in found.items() if figure is not None}
        return cls(labels, engine.is_ready, max(engine.restarts, 0), text, figures)


def _sum(text: str, name: str) -> float | None:
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values)) if values else None


def labelled(engines: Sequence[EngineState]) -> str:
    """Merge the engines' own texts: each sample gets model= and run=, and each family its help once."""
    families: dict[str, list[str]] = defaultdict(list)
    heads: dict[str, list[str]] = defaultdict(list)
    for engine in engines:
        family = ""
        for line in engine.text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                if line not in heads[family]:
                    heads[family].append(line)
            elif line.strip():
                name, _, rest = line.partition(" ") if "{" not in line else _split(line)
                name, _, own = name.partition("{")
                labels = ",".join(filter(None, [engine.labels, own.rstrip("}")]))
                # samples of a histogram (x_bucket, x_sum, x_count) stay with the head of x
                families[family if family and name.startswith(family) else name].append(f"{name}{{{labels}}} {rest}")
    lines = [line for family, samples in families.items() for line in [*heads[family], *samples]]
    return "".join(line + "\n" for line in lines)


def _split(line: str) -> tuple[str, str, str]:
    """A sample whose labels may hold spaces."""
    name, _, value = line.rpartition("} ")
    return f"{name}}}", "", value


class RequestCounts:
    """Requests and their seconds, by model, run and status."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, model: str, run_id: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests[model, run_id, status] += 1
        self._seconds[model, run_id] += seconds

    def text(self, engines: Sequence[EngineState], switches: Mapping[str, int], slots: int) -> str:
        """All of the endpoint's own families. `slots`: streams that each engine answers at once."""
        requests = [
            (f'model="{model}",run="{run}",code="{code}"', n)
            for (model, run, code), n in sorted(self._requests.items())
        ]
        seconds = [(f'model="{model}",run="{run}"', round(n, 6)) for (model, run), n in sorted(self._seconds.items())]
        families = [
            _family("tuneship_requests_total", "counter", "Requests answered.", requests),
            _family("tuneship_request_seconds_total", "counter", "Seconds spent on requests.", seconds),
            _family("tuneship_ready", "gauge", "Whether it generates.", [(e.labels, int(e.is_ready)) for e in engines]),
            _family("tuneship_slots", "gauge", "Streams it answers at once.", [(e.labels, slots) for e in engines]),
            _family("tuneship_restarts_total", "counter", "Restarts.", [(e.labels, e.restarts) for e in engines]),
            _family(
                "tuneship_switches_total",
                "counter",
                "Changes to the run that the channel names.",
                [(f'result="{result}"', count) for result, count in switches.items()],
            ),
        ]
        for name, kind, help_text in _COMMON:
            samples = [(e.labels, e.figures[name]) for e in engines if name in e.figures]
            families.append(_family(name, kind, help_text, samples))
        return "".join(families)


_COMMON = (
    ("tuneship_requests_running", "gauge", "Requests that the engine computes."),
    ("tuneship_requests_waiting", "gauge", "Requests that wait for a slot."),
    ("tuneship_generated_tokens_total", "counter", "Tokens generated."),
)


def _family(name: str, kind: str, help_text: str, samples: Iterable[tuple[str, float]]) -> str:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    return "".join(line + "\n" for line in [*lines, *(f"{name}{{{labels}}} {value:.15g}" for labels, value in samples)])
