"""TUNESHIP_API_KEY_FILE: the key as a secret file, as containers hand it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.endpoint import Endpoint
from modelstore import UserError


@pytest.mark.parametrize(
    ("content", "key"),
    [("k-1\n", "k-1"), ("# ours\n\nalice k-1 rpm=60\nbob k-2\n", "k-1"), ("", "from-the-environment")],
)
def test_the_first_key_of_the_file_is_used(
    content: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(content)
    monkeypatch.setenv("TUNESHIP_API_KEY_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("TUNESHIP_API_KEY", "from-the-environment")
    assert Endpoint("http://127.0.0.1:1/v1").client().api_key == key
    assert Endpoint("http://127.0.0.1:1/v1", "named").client().api_key == "named"


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESHIP_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="TUNESHIP_API_KEY_FILE names"):
        Endpoint("http://127.0.0.1:1/v1").client()
