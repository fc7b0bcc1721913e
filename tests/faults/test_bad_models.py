"""Damaged or hostile model folders and GGUF files: refused with one message, within bounded time and memory."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelstore import Store, UserError
from trainer import templates
from trainer.bases import resolve_base
from trainer.gguf_import import import_gguf


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(base, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(model: Path, match: str) -> None:
    store = Store(model.parent / "store")
    store.create()
    with pytest.raises(UserError, match=match):
        resolve_base(str(model), store)
    assert store.bases() == []


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_pickles_are_refused_unread_and_left_behind_beside_safetensors(model: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "extra.pt", "training_args.pkl"):
        (model / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    (model / "modeling_evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    store = Store(tmp_path / "other")
    store.create()
    found = resolve_base(str(model), store).folder("hf")
    assert not [path for path in found.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    for path in model.glob("*.safetensors"):
        path.unlink()
    refused(model, "is a pickle, which can run code and is refused")
    assert not (tmp_path / "exploded").exists()


def test_a_model_that_needs_code_of_its_repository_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "configuration_evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    auto_map = {"AutoConfig": "configuration_evil.EvilConfig"}
    edit(model / "config.json", model_type="evil", auto_map=auto_map)
    refused(model, "auto_map.*never run.*no trust_remote_code")
    edit(
        model / "config.json", model_type="llama", auto_map=auto_map
    )  # as Phi-3 has it: transformers' own code is used
    store = Store(tmp_path / "other")
    store.create()
    assert resolve_base(str(model), store).manifest.base["layout"] == "llama"
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("config.json", b"{", "not JSON"),
        ("config.json", b"[" * 100_000, "not JSON"),
        ("config.json", b"\xff\xfe", "not JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("tokenizer.json", b"{}", "tokenizer.*cannot be loaded"),
        ("tokenizer_config.json", b"[]", "tokenizer.*cannot be loaded"),
        ("model.safetensors", b"", "no whole safetensors file"),
        ("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "no whole safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]", "no whole safetensors file"),
    ],
)
def test_damaged_files_of_a_model(model: Path, name: str, data: bytes, match: str) -> None:
    (model / name).write_bytes(data)
    refused(model, match)


def test_truncated_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(model, "no whole safetensors file")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
    ],
)
def test_a_template_that_never_ends_or_takes_all_memory_is_cut_off(
    model: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "LIMIT_S", 1)
    (model / "chat_template.jinja").write_text(template)
    began = time.monotonic()
    refused(model, "damaged or hostile")
    assert time.monotonic() - began < 120


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch exploded') }}",
        "{{ 1 // 0 }}",
        "{{ messages[99].x.y }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% if %}",
    ],
)
def test_a_template_that_breaks_out_or_breaks_is_an_error_of_its_rows(base: Path, template: str) -> None:
    from transformers import AutoTokenizer

    from trainer.render import render

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="chat template"):
        render((("user", "Key?"), ("assistant", "X.")), tokenizer)
    assert not Path("exploded").exists()


def header(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"nope" * 100,
        header(1 << 60, 0),
        header(0, 1 << 60),
        header(0, 0),
        header(0, 1, struct.pack("<Q", 1 << 62)),  # a key of four exabytes
        header(0, 1, key(b"a", 8, struct.pack("<Q", 1 << 62))),  # a text of as much
        header(0, 1, key(b"a", 9, struct.pack("<IQ", 4, 1 << 40))),  # a list of as many numbers
        header(0, 1, key(b"a", 9, struct.pack("<IQ", 8, 1 << 40))),
        header(0, 1, key(b"a", 99, b"")),
        header(0, 1, key(b"general.architecture", 8, struct.pack("<Q", 2) + b"\xff\xfe")),
    ],
)
def test_gguf_files_whose_header_lies(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with templates.bounded_time(60), pytest.raises(UserError, match="GGUF"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "hf")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 1 << 63), st.integers(0, 1 << 63))
def test_any_gguf_bytes_are_refused(tmp_path: Path, rest: bytes, tensors: int, keys: int) -> None:
    (tmp_path / "m.gguf").write_bytes(header(tensors, keys, rest))
    with templates.bounded_time(60), pytest.raises(UserError, match="GGUF"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "hf")
