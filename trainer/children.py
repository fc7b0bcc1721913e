"""Child programs that end with this process, also when it is killed: an orphan would go on writing into a staging
folder that the next start uses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

# Linux sends the signal when the parent ends. A parent that ended before is seen by the number of the new one.
_BOUND = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


def bound(argv: list[str]) -> list[str]:
    """The same command, which dies with the process that starts it; on other systems than Linux it lives on."""
    if sys.platform != "linux":
        return argv
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *argv]


_running: set[subprocess.Popen[str]] = set()


def run(argv: list[str], given: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a bound command to its end, with a text on its stdin; what it writes to stdout comes back. `options` are
    those of Popen. end_children(), called by another thread, ends it early.
    """
    where = {"stdin": None if given is None else subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(bound(argv), **{**where, **options}) as child:
        _running.add(child)
        try:
            said, errors = child.communicate(given)
        except BaseException:
            child.kill()
            raise
        finally:
            _running.discard(child)
    return subprocess.CompletedProcess(argv, child.returncode, said, errors)


def end_children() -> None:
    """Kill every command that runs; the calls that wait for them come back with the signal as exit code."""
    for child in list(_running):
        child.kill()


def end_with_parent() -> None:
    """For a program of ours that another one starts: from now on it dies with that one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)
