"""Signatures of manifests with OpenSSH's keys and its own program: who vouches for a run.

Sizes and hashes of the files stand in the manifest, so a signature of the manifest covers every file of the run.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from modelstore.errors import UserError
from modelstore.files import told_apart, write_atomically
from modelstore.manifest import FILE_NAME, parse_manifest, read_bytes, to_json
from modelstore.store import Run

NAMESPACE = "tuneship-manifest"  # what the same key signed elsewhere, as commits of git, is no signature here
SIGNATURE = f"{FILE_NAME}.sig"


def sign(run: Run, key: Path) -> Path:
    """Write the signature beside the manifest, in place of one that is there. A passphrase is asked on the terminal.

    Raises UserError when the key cannot be used.
    """
    done = _ssh_keygen(["sign", "-n", NAMESPACE, "-f", str(key)], _manifest(run))
    if done.returncode:
        raise UserError(f"{run.path / FILE_NAME} could not be signed with {key}: {_words(done)}")
    with told_apart(run.path):
        write_atomically(run.path / SIGNATURE, done.stdout)
    return run.path / SIGNATURE


def signer(run: Run, allowed_signers: Path) -> str:
    """Who signed this run, as `allowed_signers` (ssh-keygen(1)) names them.

    Raises UserError when nobody did whom the file allows to, or the manifest is not the one that was signed.
    """
    manifest, signature = _manifest(run), run.path / SIGNATURE
    _must_be_readable(allowed_signers)
    if not signature.is_file():
        raise UserError(
            f"{run.path} is not signed: it has no {SIGNATURE}. Whoever vouches for a run signs it, and "
            "its base model with it: python -m modelstore sign RUN --key KEY"
        )
    trusted = ["-f", str(allowed_signers), "-s", str(signature)]
    found = _ssh_keygen(["find-principals", *trusted], b"")
    if found.returncode:
        raise UserError(f"{signature} is by nobody whom {allowed_signers} names: {_words(found)}")
    name = found.stdout.decode(errors="replace").splitlines()[0].split(",")[0]
    checked = _ssh_keygen(["verify", "-n", NAMESPACE, "-I", name, *trusted], manifest)
    if checked.returncode:
        raise UserError(
            f"{signature} does not hold for the manifest beside it: {_words(checked)}. The manifest was changed since, "
            f"or the signature was made for something else than {NAMESPACE}."
        )
    return name


def _manifest(run: Run) -> bytes:
    """The bytes of the manifest that `run` was read from: what is signed must be what is used."""
    data = read_bytes(run.path)
    if to_json(parse_manifest(data, run.path)) != to_json(run.manifest):
        raise UserError(f"{run.path / FILE_NAME} changed while it was read. Try again.")
    return data


def _must_be_readable(allowed_signers: Path) -> None:
    try:
        allowed_signers.read_bytes()
    except OSError as error:
        raise UserError(f"The allowed signers {allowed_signers} cannot be read: {error.strerror}.") from None


def _ssh_keygen(arguments: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", "-Y", *arguments], input=data, capture_output=True, check=False)
    except OSError as error:
        raise UserError(
            f"ssh-keygen, which signs and checks signatures, cannot be run: {error.strerror}. "
            "It comes with OpenSSH 8.2 or newer (Debian: openssh-client)."
        ) from None


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    """What ssh-keygen says of a failure, its first line."""
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if not line.startswith("Signing data")]
    return said[0].strip().rstrip(".") if said else f"ssh-keygen ended with code {done.returncode}"
