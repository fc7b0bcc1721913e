"""Signatures with real keys and the real ssh-keygen: what holds, and everything that must not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelstore import ArtifactSpec, Run, Store, UserError
from modelstore.signatures import NAMESPACE, sign, signer

ROOT = Path(__file__).parents[2]
RUN, BASE = "20260101-0000-a", "some-base"
pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH is not installed")


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


def allow(key: Path, options: str = "") -> Path:
    """A file of allowed signers in which ada has this key."""
    kind, public, _ = key.with_suffix(".pub").read_text().split()
    file = key.with_suffix(".allowed")
    file.write_text(f"ada@example.org,ada {options} {kind} {public}\n")
    return file


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.create()
    for stage, name in ((store.stage_base, BASE), (store.stage, RUN)):
        with stage(name) as staging:
            (staging.path / "m.gguf").write_bytes(b"weights")
            staging.publish({"base": {"id": BASE}}, [ArtifactSpec("gguf", "m.gguf", "Q8_0")])
    return store


@pytest.fixture
def run(store: Store) -> Run:
    return store.run(RUN)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "ada")


def command(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "modelstore", "--store", str(store.path), *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_signature_names_who_made_it_and_changes_nothing_else(run: Run, key: Path) -> None:
    before = (run.path / "manifest.json").read_bytes()
    signature = sign(run, key)
    assert signer(run, allow(key)) == "ada@example.org"
    assert signer(run, allow(key, f'namespaces="{NAMESPACE}"')) == "ada@example.org"
    assert (run.path / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in run.path.iterdir()) == ["m.gguf", "manifest.json", signature.name]


def test_plain_openssh_writes_the_same_signature(run: Run, key: Path) -> None:
    argv = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(run.path / "manifest.json")]
    subprocess.run(argv, check=True, capture_output=True)
    assert signer(run, allow(key)) == "ada@example.org"


@pytest.mark.fault(
    what="manifest of a signed run changed",
    how="another hash in the manifest",
    lost="found before serving, where signatures are asked for",
)
def test_a_changed_manifest_is_found(store: Store, run: Run, key: Path) -> None:
    sign(run, key)
    manifest = run.path / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["artifacts"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="does not hold for the manifest"):
        signer(store.run(RUN), allow(key))
    with pytest.raises(UserError, match="changed while it was read"):  # a run that was read before the change
        signer(run, allow(key))


def test_another_key_is_refused(run: Run, key: Path, tmp_path: Path) -> None:
    sign(run, make_key(tmp_path / "eve"))
    with pytest.raises(UserError, match=r"nobody whom .*ada\.allowed names"):
        signer(run, allow(key))


def test_a_signature_for_something_else_is_refused(run: Run, key: Path) -> None:
    argv = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", "git", str(run.path / "manifest.json")]
    subprocess.run(argv, check=True, capture_output=True)
    with pytest.raises(UserError, match="namespace does not match"):
        signer(run, allow(key))


@pytest.mark.parametrize("options", ['valid-before="20200101"', 'namespaces="git"'])
def test_what_the_file_of_signers_restricts_holds(run: Run, key: Path, options: str) -> None:
    sign(run, key)
    with pytest.raises(UserError, match=r"manifest\.json\.sig"):
        signer(run, allow(key, options))


@pytest.mark.parametrize("content", [None, b"", b"not a signature", b"\xff" * 100])
def test_no_signature(run: Run, key: Path, content: bytes | None) -> None:
    if content is not None:
        (run.path / "manifest.json.sig").write_bytes(content)
    with pytest.raises(UserError, match=r"is not signed|nobody whom"):
        signer(run, allow(key))


@pytest.mark.parametrize("content", [None, b"", b"ada\n", b"\xff\n"])
def test_a_file_of_signers_that_allows_nobody(run: Run, key: Path, tmp_path: Path, content: bytes | None) -> None:
    sign(run, key)
    if content is not None:
        (tmp_path / "signers").write_bytes(content)
    with pytest.raises(UserError, match="signers"):
        signer(run, tmp_path / "signers")


def test_without_ssh_keygen_nothing_counts_as_signed(run: Run, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(run, key)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="openssh-client"):
        signer(run, allow(key))


def test_a_key_that_cannot_sign(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be signed with"):
        sign(run, tmp_path / "no-such-key")
    assert not (run.path / "manifest.json.sig").exists()


def test_the_commands_sign_and_check_a_run_and_its_base(store: Store, key: Path) -> None:
    signers = str(allow(key))
    refused = command(store, "check", RUN, "--allowed-signers", signers)
    assert refused.returncode == 2 and "is not signed" in refused.stderr
    assert command(store, "sign", RUN, "--key", str(key)).returncode == 0
    checked = command(store, "check", RUN, "--allowed-signers", signers, "--json")
    assert json.loads(checked.stdout)["signed by"] == ["ada@example.org"] * 2
    assert command(store, "remove", RUN).returncode == 0


def test_a_damaged_run_is_not_signed(store: Store, run: Run, key: Path) -> None:
    os.truncate(run.path / "m.gguf", 3)
    done = command(store, "sign", RUN, "--key", str(key))
    assert done.returncode == 2 and "3 bytes" in done.stderr
    assert not list(store.path.rglob("*.sig"))


def test_a_base_that_grew_is_signed_again(store: Store, key: Path, tmp_path: Path) -> None:
    command(store, "sign", RUN, "--key", str(key))
    (tmp_path / "new.gguf").write_bytes(b"more")
    store.add_to_base(BASE, {"new.gguf": tmp_path / "new.gguf"}, [ArtifactSpec("gguf", "new.gguf", "Q4_0")])
    with pytest.raises(UserError, match="does not hold"):
        signer(store.base(BASE), allow(key))
    command(store, "sign", RUN, "--key", str(key))
    assert signer(store.base(BASE), allow(key)) == "ada@example.org"
