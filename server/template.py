"""Whether an engine talks with the chat template that the model was trained with."""

from __future__ import annotations

import hashlib


def is_template(text: str, sha256: str) -> bool:
    """True also when no hash is known. An engine with another template answers well-formed nonsense."""
    # writers of GGUF files differ in whether they keep white space at the ends
    variants = (text, text.strip(), f"{text.strip()}\n")
    return not sha256 or sha256 in {hashlib.sha256(variant.encode()).hexdigest() for variant in variants}
