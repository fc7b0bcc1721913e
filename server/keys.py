"""API keys: names, secrets and limits from a file that may change meanwhile, or one key from the environment."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from modelstore import UserError
from server.quota import Quota

LOOK_S = 1.0
EXAMPLE = "alice 6f1c0d… per_minute=60 streams=4"
LIMITS = ("per_minute", "streams")


@dataclass(frozen=True)
class Key:
    """Who asks, and how much: requests a minute and requests at once; None is no limit."""

    name: str
    digest: bytes
    per_minute: int | None = None
    streams: int | None = None


class KeyRing:
    """The keys that count now. Without any, everybody may ask."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = read_keys(path)
        self._quotas: dict[str, Quota] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return not self._keys

    def find(self, given: str) -> Key | None:
        """Every key is compared, in constant time each, so that the time says nothing about the keys."""
        digest = _digest(given)
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None

    def quota(self, key: Key) -> Quota:
        """What `key` has used. Survives a change of the file, which may change the limits."""
        quota = self._quotas.setdefault(key.name, Quota())
        quota.limit(key.per_minute, key.streams)
        return quota

    async def follow_file(self) -> None:
        """Read the file again whenever it changes. A file with a mistake changes nothing and is told."""
        while True:
            await asyncio.sleep(LOOK_S)
            if (stamp := _stamp(self._path)) == self._stamp:
                continue
            self._stamp = stamp
            try:
                self._keys = read_keys(self._path)
                print(f"keys: {len(self._keys)} read from {self._path}", file=sys.stderr, flush=True)
            except UserError as error:
                print(f"keys: unchanged, because: {error}", file=sys.stderr, flush=True)


def read_keys(path: Path | None) -> tuple[Key, ...]:
    """A line is `name key`, then limits; empty lines and # comments are left out.

    Without a file the variable TUNESHIP_API_KEY counts; without both nothing is asked for. Raises UserError.
    """
    if path is None:
        key = os.environ.get("TUNESHIP_API_KEY", "")
        return (Key("environment", _digest(key)),) if key else ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The key file {path} cannot be read: {error}.") from None
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key_of_line = _key(line, f"{path}, line {number}")
        if key_of_line.name in keys:
            raise UserError(f"{path}, line {number}: the name {key_of_line.name} was given to another key before.")
        keys[key_of_line.name] = key_of_line
    if not keys:
        raise UserError(f"{path} holds no key. A line looks like: {EXAMPLE}")
    return tuple(keys.values())


def _key(line: str, place: str) -> Key:
    name, *rest = line.split()
    if not rest or "=" in rest[0]:
        raise UserError(f"{place}: a name and a key are expected, as in: {EXAMPLE}")
    limits: dict[str, int] = {}
    for word in rest[1:]:
        what, _, value = word.partition("=")
        # the word may be the second half of a key, so it is not repeated
        if what not in LIMITS or what in limits or not value.isdecimal() or int(value) < 1:
            raise UserError(f"{place}: after the key only per_minute=N and streams=N may stand, N from 1: {EXAMPLE}")
        limits[what] = int(value)
    return Key(name, _digest(rest[0]), **limits)


def _digest(key: str) -> bytes:
    """Of equal length for all keys, which is what a comparison in constant time needs."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes with the file, also when a link is turned to another one."""
    try:
        found = path.stat() if path else None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None
    except OSError:
        return None
