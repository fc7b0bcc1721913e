"""The contract: what is published is whole, found, checked and never changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelstore import ArtifactSpec, Check, Store, UserError, new_run_id
from modelstore.manifest import read_manifest

FIELDS = {"base": {"id": "b"}, "serve": {"quantization": "Q8_0"}, "verification": [Check("c", True, {"x": 1}, "x = 1")]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.create()
    return store


def publish(store: Store, run_id: str, content: bytes = b"weights") -> None:
    with store.stage(run_id) as staging:
        (staging.path / "merged").mkdir()
        (staging.path / "merged" / "model.safetensors").write_bytes(content)
        (staging.path / "merged" / "config.json").write_text("{}")
        (staging.path / "gguf").mkdir()
        (staging.path / "gguf" / "m-Q8_0.gguf").write_bytes(content)
        staging.publish(FIELDS, [ArtifactSpec("merged", "merged"), ArtifactSpec("gguf", "gguf/m-Q8_0.gguf", "Q8_0")])


def test_a_published_run_is_found_by_id_beginning_and_channel(store: Store) -> None:
    publish(store, "20260101-0000-a")
    publish(store, "20260102-0000-b")
    store.promote("20260101-0000-a")
    store.promote("20260102-0000-b")
    assert [run.id for run in store.runs()] == ["20260101-0000-a", "20260102-0000-b"]
    assert store.run("current").id == store.run("20260102").id == "20260102-0000-b"
    assert store.run("previous").id == "20260101-0000-a"
    run = store.run("current")
    assert run.artifact("gguf", "Q8_0").path.read_bytes() == b"weights"
    assert run.folder("merged") == run.path / "merged"
    assert run.manifest.verification[0].figures == {"x": 1}
    store.check(run)
    assert store.rollback().run == "20260101-0000-a"
    assert (store.channel("current"), store.channel("previous")) == ("20260101-0000-a", "20260102-0000-b")


@pytest.mark.parametrize(
    ("ref", "part"),
    [("nope", "no run 'nope'"), ("2026", "several runs"), ("current", "names no run yet"), ("../x", "no run")],
)
def test_a_wrong_reference_says_what_to_do(store: Store, ref: str, part: str) -> None:
    publish(store, "20260101-0000-a")
    publish(store, "20260102-0000-b")
    with pytest.raises(UserError, match="make runs") as raised:
        store.run(ref)
    assert part in str(raised.value)


def test_an_error_while_staging_publishes_nothing_and_keeps_the_folder(store: Store) -> None:
    with pytest.raises(RuntimeError), store.stage("20260101-0000-a") as staging:
        (staging.path / "half").write_text("x")
        raise RuntimeError
    assert store.runs() == []
    with store.stage("20260101-0000-a") as staging:  # the next attempt finds what was there
        assert (staging.path / "half").exists()


def test_two_writers_of_one_run_are_refused(store: Store) -> None:
    with (
        store.stage("20260101-0000-a"),
        pytest.raises(UserError, match="Another process"),
        store.stage("20260101-0000-a"),
    ):
        pass


def test_a_published_run_is_never_changed(store: Store) -> None:
    publish(store, "20260101-0000-a")
    with pytest.raises(UserError, match="never changed"), store.stage("20260101-0000-a"):
        pass


@pytest.mark.fault(
    what="damaged file of a run",
    how="a byte changed, cut off, deleted",
    lost="found before serving: sizes and SHA-256 are compared at every start",
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_found_and_names_the_file(store: Store, damage: str) -> None:
    publish(store, "20260101-0000-a")
    path = store.run("2026").artifact("gguf").path
    if damage == "flip":
        path.write_bytes(b"weighta")
    elif damage == "truncate":
        path.write_bytes(b"weigh")
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"m-Q8_0\.gguf"):
        store.check(store.run("2026"))


def rewrite(store: Store, **changes: object) -> None:
    path = store.path / "runs" / "20260101-0000-a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"format": 2}, "newer Tuneship"),
        ({"id": "other"}, "renamed"),
        ({"artifacts": [{"kind": "gguf", "path": "../../x", "bytes": 1, "sha256": "0"}]}, "leaves its folder"),
        ({"artifacts": [{"kind": "gguf", "path": "/etc/passwd", "bytes": 1, "sha256": "0"}]}, "leaves its folder"),
        ({"artifacts": [{"kind": "gguf", "path": "x", "bytes": -1, "sha256": "0"}]}, "not a manifest"),
        ({"artifacts": [{"kind": "gguf"}]}, "not a manifest"),
        ({"artifacts": 3}, "not a manifest"),
        ({"base": []}, "not a manifest"),
    ],
)
def test_hostile_or_foreign_manifests_are_refused(store: Store, changes: dict[str, object], part: str) -> None:
    publish(store, "20260101-0000-a")
    rewrite(store, **changes)
    with pytest.raises(UserError) as raised:
        store.run("20260101-0000-a")
    assert part in str(raised.value)


def test_a_link_that_leaves_the_run_is_refused(store: Store, tmp_path: Path) -> None:
    publish(store, "20260101-0000-a")
    path = store.run("2026").artifact("gguf").path
    (tmp_path / "secret").write_bytes(b"weights")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="link"):
        store.run("20260101-0000-a")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 1}', "\udcff"])
def test_garbage_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError):
        read_manifest(tmp_path)


def test_removal_spares_what_a_channel_names(store: Store) -> None:
    for run_id in ("20260101-0000-a", "20260102-0000-b", "20260103-0000-c"):
        publish(store, run_id)
    store.promote("20260102-0000-b")
    with pytest.raises(UserError, match="channel"):
        store.remove("20260102-0000-b")
    assert store.prune() == ["20260101-0000-a", "20260103-0000-c"]
    assert [run.id for run in store.runs()] == ["20260102-0000-b"]


def test_a_base_grows_and_replaces_a_file_of_the_same_name(store: Store, tmp_path: Path) -> None:
    with store.stage_base("b-1") as staging:
        (staging.path / "hf").mkdir()
        (staging.path / "hf" / "config.json").write_text("{}")
        staging.publish({"base": {"repository": "r"}}, [ArtifactSpec("hf", "hf")])
    for content in (b"one", b"two"):
        (tmp_path / "new").write_bytes(content)
        spec = ArtifactSpec("gguf", "gguf/b-Q8_0.gguf", "Q8_0")
        base = store.add_to_base("b-1", {"gguf/b-Q8_0.gguf": tmp_path / "new"}, [spec])
        assert base.artifact("gguf", "Q8_0").path.read_bytes() == content
        store.check(base)
    with pytest.raises(UserError, match="It has: gguf Q8_0, hf"):
        base.artifact("gguf", "Q4_K_M")


def test_ids_sort_by_time_and_are_valid(store: Store) -> None:
    run_id = new_run_id("SmolLM2", "Handbuch / EN")
    assert run_id[8] == "-" and "smollm2-handbuch-en" in run_id
    publish(store, run_id)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from modelstore import ArtifactSpec, Store
store = Store(Path(sys.argv[1])); store.create()
with store.stage(sys.argv[2]) as staging:
    (staging.path / "gguf").mkdir(exist_ok=True)
    (staging.path / "gguf" / "m.gguf").write_bytes(b"x" * 3_000_000)
    staging.publish({"base": {"id": "b"}}, [ArtifactSpec("gguf", "gguf/m.gguf", "Q8_0")])
store.promote(sys.argv[2])
"""


@pytest.mark.fault(
    what="kill -9 while a run is written and promoted",
    how="SIGKILL to a writer of the store, at moments from its start to 1.25 times what an undisturbed one took",
    lost="nothing: a whole run or none; the next attempt publishes",
)
def test_a_kill_at_any_moment_leaves_no_half_run_and_the_next_attempt_succeeds(
    store: Store, record_property: Callable[[str, object], None]
) -> None:
    root = str(Path(__file__).parents[2])
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", WRITER, str(store.path), "20260101-whole-a", root], check=True)
    whole_s, survived = time.monotonic() - began, 0
    for number in range(40):
        run_id = f"20260101-{number:04d}-a"
        argv = [sys.executable, "-c", WRITER, str(store.path), run_id, root]
        writer = subprocess.Popen(argv)
        time.sleep(whole_s * (number + 1) / 32)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        for run in store.runs():
            store.check(run)
        if (store.path / "runs" / run_id).exists():
            survived += 1
        else:
            subprocess.run(argv, check=True)
        assert store.run(run_id).id == run_id
        if current := store.channel("current"):
            store.check(store.run(current))
    assert survived < 40, "no writer was killed before it had published"
    record_property("times", f"40 moments, {40 - survived} before the run was published")


@pytest.mark.fault(
    what="a file system that copies instead of renaming, killed while it publishes",
    how="a rename that copies file by file, manifest last or first, and ends after each of them",
    lost="nothing: no run, which the next attempt publishes; or one whose missing file is named before it is served",
)
@pytest.mark.parametrize("manifest_first", [False, True])
def test_a_rename_that_is_a_copy_is_interrupted(
    store: Store, manifest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(staging: Path, target: Path) -> None:
        files = sorted(staging.rglob("*.*"), key=lambda path: (path.name == "manifest.json") != manifest_first)
        for file in files[:most]:
            (target / file.relative_to(staging)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.relative_to(staging))
        raise KeyboardInterrupt

    for most in range(4):  # of the four files
        run_id = f"20260101-000{most}-a"
        with monkeypatch.context() as without_rename, pytest.raises(KeyboardInterrupt):
            without_rename.setattr(Path, "rename", copied)
            publish(store, run_id)
        if manifest_first and most:
            with pytest.raises(UserError, match="is missing"):
                store.check(store.run(run_id))
        else:
            assert run_id not in [run.id for run in store.runs()]
            shutil.rmtree(store.path / "runs" / f".staging-{run_id}")
            publish(store, run_id)
            store.check(store.run(run_id))


def test_the_command_line_lists_promotes_and_explains(store: Store) -> None:
    publish(store, "20260101-0000-a")
    argv = [sys.executable, "-m", "modelstore", "--store", str(store.path)]
    root = Path(__file__).parents[2]
    assert "current" in subprocess.check_output([*argv, "promote", "2026"], text=True, cwd=root)
    listed = json.loads(subprocess.check_output([*argv, "runs", "--json"], text=True, cwd=root))
    assert [(row["id"], row["channel"]) for row in listed] == [("20260101-0000-a", "current")]
    assert "not evaluated" in subprocess.check_output([*argv, "runs"], text=True, cwd=root)
    wrong = subprocess.run([*argv, "check", "zzz"], capture_output=True, text=True, cwd=root, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: There is no run 'zzz'")
