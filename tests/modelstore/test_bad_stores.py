"""Whatever lies in a store, a reader gets a run or a UserError."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelstore import ArtifactSpec, Check, Store, UserError
from modelstore.__main__ import _row
from modelstore.manifest import read_manifest

ID = "20260101-0000-a"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.create()
    with store.stage(ID) as staging:
        (staging.path / "m.gguf").write_bytes(b"weights")
        fields = {"base": {"id": "b"}, "verification": [Check("c", True, {"x": 1}, "x = 1")]}
        staging.publish(fields, [ArtifactSpec("gguf", "m.gguf", "Q8_0")])
    return store


def read_all(store: Store) -> None:
    for run in store.runs():
        _row(store, run)
        store.check(run)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


@quick
@given(data=st.data(), value=JSON)
def test_any_value_anywhere_in_a_manifest(store: Store, data: st.DataObject, value: Any) -> None:
    path = store.path / "runs" / ID / "manifest.json"
    before = path.read_bytes()
    tree = json.loads(before)
    place = data.draw(st.sampled_from(places(tree)))
    try:
        if place:
            holder = tree
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = value
        path.write_text(json.dumps(tree if place else value))
        try:
            read_all(store)
        except UserError as error:
            assert str(error)
    finally:
        path.write_bytes(before)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_as_a_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(UserError):
        read_manifest(tmp_path)


@quick
@given(st.text(max_size=40))
def test_any_path_in_a_manifest_stays_in_its_run(store: Store, text: str) -> None:
    path = store.path / "runs" / ID / "manifest.json"
    before = path.read_bytes()
    tree = json.loads(before)
    tree["artifacts"][0]["path"] = text
    path.write_text(json.dumps(tree))
    try:
        for run in store.runs():
            assert run.manifest.artifacts[0].path.resolve().is_relative_to(run.path.resolve())
            store.check(run)
    except UserError:
        pass
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000, "NaN", "1" + "0" * 4000])
def test_huge_numbers(store: Store, number: str) -> None:
    path = store.path / "runs" / ID / "manifest.json"
    path.write_text(path.read_text().replace('"bytes": 7', f'"bytes": {number}'))
    with pytest.raises(UserError):
        read_all(store)


def test_a_manifest_of_gigabytes_is_not_read(store: Store) -> None:
    path = store.path / "runs" / ID / "manifest.json"
    os.truncate(path, 8 << 30)  # takes no space
    with pytest.raises(UserError, match="larger than"):
        store.runs()


def test_a_folder_that_is_a_link_out_of_the_run(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "m.gguf").write_bytes(b"weights")
    (store.path / "runs" / ID / "sub").symlink_to(tmp_path / "outside")
    path = store.path / "runs" / ID / "manifest.json"
    path.write_text(path.read_text().replace('"path": "m.gguf"', '"path": "sub/m.gguf"'))
    with pytest.raises(UserError, match="link that leaves its folder"):
        store.runs()


@pytest.mark.parametrize("content", [b"", b"../../etc", b"\xff", b"a" * 5000, b"a\0b"])
def test_any_channel_file(store: Store, content: bytes) -> None:
    (store.path / "channels" / "current").write_bytes(content)
    with pytest.raises(UserError):
        store.run("current")


def test_a_channel_that_is_a_folder(store: Store) -> None:
    (store.path / "channels" / "current").mkdir()
    with pytest.raises(UserError, match="does not hold a run id"):
        store.run("current")
