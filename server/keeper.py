"""Runs an engine that has processes of its own, and lets none of them outlive it or this server. Linux.

An engine whose parent dies is killed by the kernel, but what it has started itself is not: it would keep the memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
PARENT_GONE = signal.SIGUSR1


def main(argv: list[str]) -> int:
    """Returns the engine's exit code. Must be the leader of its process group, as supervise.py starts it."""
    server = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: None)  # the whole group gets it; the engine's end is waited for
    signal.signal(PARENT_GONE, _end_group)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, PARENT_GONE)
    if os.getppid() != server:
        return 1  # it died before the kernel was asked
    code = subprocess.Popen(argv).wait()
    if code:
        _end_group()
    return code


def _end_group(*_: int | FrameType | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
