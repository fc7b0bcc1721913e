"""What the benchmarks of the server share: a server of their own, what it holds in memory, the machine in words."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from modelstore import Store
from modelstore.machine import cpu_threads
from server.keys import KeyRing
from server.plan import ServePlan, listen
from tests.server.conftest import ROOT, build_store, free_port

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Running:
    """A server that is ready, and the seconds that this took from its command on."""

    pid: int
    url: str
    start_s: float


@contextmanager
def a_store(given: Path | None) -> Iterator[Path]:
    """`given`, or one with the embedded small model as base and as run."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        build_store(Path(folder) / "models")
        yield Path(folder) / "models"


@contextmanager
def server(store: Path, *options: str, timeout_s: float = 600) -> Iterator[Running]:
    """`python -m server serve`, ended afterwards."""
    port, began = free_port(), time.monotonic()
    argv = [sys.executable, "-m", "server", "serve", "--store", str(store), "--port", str(port), *options]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/ready", process, timeout_s)
            yield Running(process.pid, url, time.monotonic() - began)
        finally:
            process.terminate()


def run_gateway(plan: ServePlan, port: int) -> None:
    """For a process of its own: what `server serve` does, with a plan that tells the caller the engines' keys."""
    import uvloop

    from server.serve import serve

    uvloop.run(serve(plan, listen("127.0.0.1", port), KeyRing(None), 5))


def wait_for(url: str, process: subprocess.Popen[Any], timeout_s: float, headers: dict[str, str] | None = None) -> None:
    """Until `url` answers 200; ends the program when `process` ends or the time is over."""
    end = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=5).close()
            return
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"error: {url} does not answer; the server ended with {process.poll()}")


def family(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in family(int(child)))]


def memory_mb(pid: int) -> float:
    """What the process holds: shared pages in equal parts (PSS), so that processes may be added up."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_s(pid: int) -> float:
    """Processor seconds that the threads of the process have used, to the microsecond (/proc/PID/stat has 10 ms)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def bootstrap(seen: Sequence[Seen], statistic: Callable[[Sequence[Seen]], float]) -> tuple[float, float]:
    """The middle 95% of the statistic over 2,000 resamples."""
    drawn = random.Random(1)
    found = sorted(statistic(drawn.choices(seen, k=len(seen))) for _ in range(2000))
    return round(found[50], 4), round(found[1949], 4)


def described(what: str, store: Path, ref: str = "current") -> dict[str, Any]:
    """Head of a result document."""
    run = Store(store).run(ref)
    return {
        "what": what,
        "command": " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *_arguments()]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processors": cpu_threads(), "system": platform.system(), "python": platform.python_version()},
        "load_before": round(os.getloadavg()[0], 2),
        "packages": {name: version(name) for name in ("xllamacpp", "aiohttp") if find_spec(name)},
        "model": run.manifest.base.get("id"),
    }


def _arguments() -> list[str]:
    """Of this program, without the folders of this machine."""
    shown = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return [word for before, word in zip(["", *shown], shown, strict=False) if "--out" not in (before, word)]
