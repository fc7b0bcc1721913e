"""A chat template is a program that comes with a model. It runs in the library's sandbox; here its time and memory are
bounded as well.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelstore import UserError

LIMIT_S = 10
LIMIT_BYTES = 1 << 30  # above what the process has
SAMPLE = [{"role": "user", "content": "Which key?"}, {"role": "assistant", "content": "This one."}]


@contextmanager
def bounded_time(seconds: float = LIMIT_S) -> Iterator[None]:
    """Raise TimeoutError in the block after so long; only a process's main thread can be bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it runs longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refuse_hostile(tokenizer: Any) -> None:
    """Try the template once, in a process of its own with bounded time and memory. Raises UserError when it is cut off.

    A template that refuses the sample passes: that is its right, and shows when rows are rendered.
    """
    if not tokenizer.chat_template:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        _try(tokenizer)
    _, status = os.waitpid(pid, 0)
    if status:
        raise UserError(
            f"The model's chat template takes more than {LIMIT_S} s or {LIMIT_BYTES >> 30} GiB for two short turns. "
            "It is damaged or hostile: take the model from another source, or write another chat_template.jinja."
        )


def _try(tokenizer: Any) -> None:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        statm = Path("/proc/self/statm")
        if statm.exists():
            most = int(statm.read_text().split()[0]) * resource.getpagesize() + LIMIT_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(6 * LIMIT_S)  # on a busy machine processor time passes slowly
        tokenizer.apply_chat_template(SAMPLE, tokenize=False)
        code = 0
    except MemoryError:
        pass
    except Exception:
        code = 0
    finally:
        os._exit(code)
