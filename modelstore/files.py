"""Durable file operations: what was reported as written survives a crash."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from modelstore.errors import UserError
from modelstore.machine import cpu_threads

HASHED_AT_ONCE = 8  # files; more wait for the disk


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path`: readers see the old content or the new one, never a part; a crash too."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(paths: Iterable[Path]) -> list[str]:
    """Hashes of the files' contents, read in pieces, several files at once."""

    def of_one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(min(HASHED_AT_ONCE, cpu_threads())) as pool:  # hashlib lets other threads run
        return list(pool.map(of_one, paths))


@contextmanager
def told_apart(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals into advice."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full. Free space (`make prune` deletes runs that no channel names), start again",
            errno.EDQUOT: "the quota is used up. Free space and start again",
            errno.EROFS: "the file system is read-only. Mount it writable or name another store with --store",
            errno.EACCES: "permission denied. The store must belong to the user that trains",
            errno.EPERM: "operation not permitted. The store must belong to the user that trains",
        }.get(error.errno or 0)
        if advice is None:
            raise
        raise UserError(f"{error.filename or where}: {advice}. Published runs are untouched.") from None


@contextmanager
def exclusive_lock(path: Path, *, waits: bool = False) -> Iterator[None]:
    """An exclusive lock that ends with the process, so a killed writer never blocks the next one.

    Raises UserError when another process has it, unless `waits` is set: for work that is soon done.
    """
    with told_apart(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(
                f"Another process is writing to this store ({path} is locked). Wait for it or stop it."
            ) from None
        yield
    finally:
        os.close(handle)
