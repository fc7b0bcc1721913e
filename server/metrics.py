"""Prometheus text: the engines' own metrics with labels, and the endpoint's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence


def labelled(texts: Sequence[tuple[str, str]], run_id: str) -> str:
    """Merge the engines' texts: each sample gets model= and run=, and each family its help once."""
    families: dict[str, list[str]] = defaultdict(list)
    heads: dict[str, list[str]] = defaultdict(list)
    for role, text in texts:
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                if line not in heads[family]:
                    heads[family].append(line)
            elif line.strip():
                name, _, rest = line.partition(" ")
                name, _, own = name.partition("{")
                labels = ",".join(filter(None, [f'model="{role}",run="{run_id}"', own.rstrip("}")]))
                families[name].append(f"{name}{{{labels}}} {rest}")
    lines = [line for family, samples in families.items() for line in [*heads[family], *samples]]
    return "".join(line + "\n" for line in lines)


class RequestCounts:
    """Requests and their seconds, by model and status."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._seconds: dict[str, float] = defaultdict(float)

    def add(self, model: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests[model, status] += 1
        self._seconds[model] += seconds

    def text(self, engines: Mapping[str, tuple[bool, int]], run_id: str) -> str:
        """`engines` maps a role to whether it is ready and how often it was restarted."""
        lines = ["# HELP tuneship_requests_total Requests answered.", "# TYPE tuneship_requests_total counter"]
        for (model, status), count in sorted(self._requests.items()):
            lines.append(f'tuneship_requests_total{{model="{model}",run="{run_id}",code="{status}"}} {count}')
        lines += [
            "# HELP tuneship_request_seconds_total Seconds spent on requests.",
            "# TYPE tuneship_request_seconds_total counter",
        ]
        for model, seconds in sorted(self._seconds.items()):
            lines.append(f'tuneship_request_seconds_total{{model="{model}",run="{run_id}"}} {seconds:.6f}')
        lines += ["# HELP tuneship_ready Whether the engine generates.", "# TYPE tuneship_ready gauge"]
        lines += [
            f'tuneship_ready{{model="{role}",run="{run_id}"}} {int(ready)}' for role, (ready, _) in engines.items()
        ]
        lines += ["# HELP tuneship_restarts_total Engine restarts.", "# TYPE tuneship_restarts_total counter"]
        lines += [f'tuneship_restarts_total{{model="{role}",run="{run_id}"}} {n}' for role, (_, n) in engines.items()]
        return "".join(line + "\n" for line in lines)
