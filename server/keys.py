"""API keys: names and secrets from a file, or one key from the environment."""

from __future__ import annotations

import os
from pathlib import Path

from modelstore import UserError


def read_keys(path: Path | None) -> dict[str, str]:
    """Name -> key. A line of the file is `name key`; empty lines and # comments are left out.

    Without a file the variable TUNESHIP_API_KEY counts; without both nothing is asked for. Raises UserError.
    """
    if path is None:
        key = os.environ.get("TUNESHIP_API_KEY", "")
        return {"environment": key} if key else {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The key file {path} cannot be read: {error}.") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 2 or parts[0] in keys:
            raise UserError(f"{path}, line {number}: one unused name and one key are expected, as in: alice 6f1c0d…")
        keys[parts[0]] = parts[1]
    if not keys:
        raise UserError(f"{path} holds no key. A line looks like: alice 6f1c0d…")
    return keys
