"""Names a full disk: libraries and child programs report it in many ways, some without a word of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelstore import UserError

NOTHING_LEFT_BYTES = 4 << 20
SAID = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122")


def is_full(folder: Path, said: str = "") -> bool:
    """Whether `said` complains of space, or `folder`'s disk has next to none."""
    if any(words in said.lower() for words in SAID):
        return True
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free < NOTHING_LEFT_BYTES


def full_disk(path: Path) -> OSError:
    """What the operating system would have said."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def saying_when_full(folder: Path) -> Iterator[None]:
    """Any error while `folder`'s disk is full becomes the one that says so."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_full(folder, f"{error}"):
            raise full_disk(folder) from error
        raise
