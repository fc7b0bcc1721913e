"""What every engine is to the rest of the server: values that say how to start it, ask it and watch it."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelstore import Artifact, Base, Run

# For engines on processors: libgomp's own value for crowded ones. Its default spins for a millisecond at every barrier,
# so that two engines on the same processors take turns at doing nothing: docs/serving.md has the measurement.
OPENMP_SPINS = "1000"


@dataclass(frozen=True)
class EngineOptions:
    """How engines are started. `context_tokens` is per slot; a slot holds one stream."""

    slots: int = 8
    context_tokens: int = 2048
    threads: int = 1
    gpu_layers: int = 0
    gpu_share: float = 0.0  # of the GPU's memory, for one process that reserves it; 0: there is no GPU
    gpu_bytes: int = 0  # the GPU's whole memory
    kv_cache_gib: int = 1  # for one process that reserves it in main memory
    native_bf16: bool = True  # where it computes; 16-bit weights are computed in fp32 elsewhere
    cache: Path | None = None  # for code that an engine compiles; None: where the engine keeps it by itself


@dataclass(frozen=True)
class Weights:
    """What is served: `tuned` and `base` are GGUF files, or folders of safetensors, or adapter and base folder."""

    kind: str
    tuned: Path
    base: Path
    artifacts: tuple[Artifact, ...]

    @property
    def bytes(self) -> int:
        """Size of all files that are read."""
        return sum(artifact.bytes for artifact in self.artifacts)


@dataclass(frozen=True)
class ServedModel:
    """A model of an engine, which knows it by `names[0]`; requests may use every name. `id` is of the run or base.

    One with an `adapter` is loaded into a running engine.
    """

    role: str
    id: str
    names: tuple[str, ...]
    adapter: Path | None = None


@dataclass(frozen=True)
class Probes:
    """What an engine says about itself: its own names for work done and waiting, and where it tells its template."""

    steps: re.Pattern[str]  # a counter that grows while the engine computes
    running: str
    waiting: str
    generated: str
    template_path: str = ""


@dataclass(frozen=True)
class EnginePlan:
    """One engine process that is to be."""

    models: tuple[ServedModel, ...]
    port: int
    api_key: str
    argv: list[str]
    environment: dict[str, str]
    probes: Probes
    start_limit_s: float
    chat_template_sha256: str = ""
    has_children: bool = False
    stop_limit_s: float = 5.0  # after SIGTERM, until it is killed
    most_requests: int = 512  # at once, those that wait for a slot among them
    slots: int = 0  # that a request can be put into by number
    pass_costs: int = 0  # see server.slots

    @property
    def url(self) -> str:
        """Where the engine listens, on this machine only."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def title(self) -> str:
        """The roles that it plays."""
        return "+".join(model.role for model in self.models)

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for two plans that would start the same process, apart from its port and key."""
        return tuple(word for word in self.argv if word != str(self.port))


class EngineKind(Protocol):
    """An engine. `weights` are the kinds that it reads, its default first."""

    name: str
    weights: tuple[str, ...]

    def plans(self, run: Run, base: Base, weights: Weights, options: EngineOptions) -> tuple[EnginePlan, ...]:
        """The processes that serve run and base, the run's first."""


def served_models(run: Run, base: Base) -> tuple[ServedModel, ServedModel]:
    """Tuned and base, with every name that a request may use."""
    return ServedModel("tuned", run.id, (run.id, "tuned")), ServedModel("base", base.id, ("base", base.id))


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
