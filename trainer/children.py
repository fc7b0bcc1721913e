"""Child programs that end with this process, also when it is killed: an orphan would go on writing into a staging
folder that the next start uses.
"""

from __future__ import annotations

import os
import sys

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


def end_with_parent() -> None:
    """For a program of ours that another one starts: from now on it dies with that one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)
