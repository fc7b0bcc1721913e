"""Generated TOML: whatever a config file may hold, from noise to a valid file with one value exchanged."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import strategies as st

# a null byte cannot stand in a file's name, huge integers in no float, and half a surrogate pair in no UTF-8
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["a\0b", "auto", "x" * 300])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 1e308])
VALUES = st.recursive(
    st.booleans() | NUMBERS | TEXTS | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NOISE = st.binary(max_size=200) | st.text("[]{}=,.\"'\n #abc019-:TZ\\u\0", max_size=120).map(str.encode)
# what tomllib itself answers with something else than its own error
ODD = st.sampled_from(
    [b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"a = 0x" + b"f" * 5000, b"[" + b"a." * 5000 + b"a]"]
)


def toml(value: Any) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return json.dumps(value) if isinstance(value, str | bool | int) else str(value.isoformat())


def document(tree: dict[str, Any]) -> bytes:
    """A whole file; sections are inline tables."""
    # TOML wants DEL escaped, and JSON leaves it
    return (
        "".join(f"{json.dumps(name)} = {toml(value)}\n" for name, value in tree.items())
        .replace("\x7f", "\\u007f")
        .encode()
    )


@st.composite
def exchanged(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with a value exchanged or a key added, at its top or in a section."""
    sections = [name for name, value in tree.items() if isinstance(value, dict)]
    section = draw(st.sampled_from([None, *sections]))
    inside = dict(tree if section is None else tree[section])
    inside[draw(st.sampled_from(sorted(inside)) | TEXTS)] = draw(VALUES)
    return inside if section is None else {**tree, section: inside}
