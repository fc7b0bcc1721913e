"""A user's mistake is one exception type and never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """What happened, where, and what to do next, as plain sentences."""


def exit_cleanly(command: Callable[[], object]) -> None:
    """Run a program's entry point: a user's mistake becomes one line and exit code 2, an interruption 130.

    A bug keeps its traceback.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... | head` closed our output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
