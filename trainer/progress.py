"""Says what is going on: a bar with the time left on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Reporter:
    """Steps of the pipeline and the training bar."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._said_at = 0.0
        self._first: tuple[int, float] | None = None

    def say(self, message: str) -> None:
        """One line, with the seconds since the start."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {message}", file=sys.stderr, flush=True)

    def on_step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Called after every optimizer step; `figures` has loss and tokens_per_s."""
        if sys.stderr.isatty():
            self._draw(step, total, figures)
        else:
            self._line(step, total, figures)

    def _draw(self, step: int, total: int, figures: dict[str, float]) -> None:
        if self._bar is None:
            self._bar = _progress()
            self._task = self._bar.add_task("training", total=total, completed=step, loss="", speed="")
            self._bar.start()
        assert self._task is not None  # noqa: S101
        self._bar.update(
            self._task,
            completed=step,
            loss=_loss(figures),
            speed=f"{figures['tokens_per_s']:.0f} tokens/s",
        )
        if step >= total:
            self.close()

    def _line(self, step: int, total: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        if now - self._said_at < 15 and step < total:
            return
        self._said_at = now
        done = step - self._first[0]
        left = f", {(now - self._first[1]) / done * (total - step):.0f} s left" if done else ""
        self.say(f"step {step}/{total}, {_loss(figures)}, {figures['tokens_per_s']:.0f} tokens/s{left}")

    def close(self) -> None:
        """Leave the terminal as it was, whatever happened."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _loss(figures: dict[str, float]) -> str:
    return f"loss {figures['loss']:.3f}" if math.isfinite(figures["loss"]) else "loss -"


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    figures = [TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}")]
    return Progress(*columns, *figures, console=Console(stderr=True))
