"""The manifest: what a run or a base model is, and every file that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from modelstore.errors import UserError

FORMAT = 1
FILE_NAME = "manifest.json"
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class ArtifactSpec:
    """A file or folder that a writer wants to publish; `path` is relative to the run, with forward slashes."""

    kind: str
    path: str
    quantization: str | None = None


@dataclass(frozen=True)
class Artifact:
    """A published file. `relative` is its place in the run (the manifest's `path`)."""

    kind: str
    relative: str
    bytes: int
    sha256: str
    quantization: str | None = None
    root: Path = field(default=Path(), compare=False, repr=False)

    @property
    def path(self) -> Path:
        """The file on this machine."""
        return self.root / self.relative


@dataclass(frozen=True)
class Check:
    """One verification: its figures and the limit that they were held against."""

    name: str
    passed: bool
    figures: dict[str, float | int | str]
    limit: str


@dataclass(frozen=True)
class Manifest:
    """Format 1. README.md of this package specifies every field."""

    id: str
    created: str
    base: dict[str, Any]
    artifacts: tuple[Artifact, ...]
    format: int = FORMAT
    dataset: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_sha256: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    chat_template_sha256: str = ""
    serve: dict[str, Any] = field(default_factory=dict)
    verification: tuple[Check, ...] = ()


def to_json(manifest: Manifest) -> bytes:
    """The manifest as it is stored."""
    tree = asdict(manifest)
    tree["artifacts"] = [
        {
            "kind": entry.kind,
            "path": entry.relative,
            "bytes": entry.bytes,
            "sha256": entry.sha256,
            "quantization": entry.quantization,
        }
        for entry in manifest.artifacts
    ]
    return (json.dumps(tree, ensure_ascii=False, indent=1, default=str) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Parse <folder>/manifest.json.

    Raises UserError for an unknown format, a malformed file or a path that leaves the folder.
    """
    return parse_manifest(read_bytes(folder), folder)


def read_bytes(folder: Path) -> bytes:
    """What <folder>/manifest.json holds. Raises UserError where it cannot be a manifest."""
    path = folder / FILE_NAME
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES} bytes, so it is no manifest.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def parse_manifest(data: bytes, folder: Path) -> Manifest:
    """The manifest that `data` is, for the run in `folder`. Raises UserError as `read_manifest` does."""
    try:
        return _parse(json.loads(data), folder)
    except OSError as error:  # a path is followed through links
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        fault = f"{type(error).__name__} {error}"
        raise UserError(f"{folder / FILE_NAME} is not a manifest of format {FORMAT}: {fault}.") from None


def _parse(tree: Any, folder: Path) -> Manifest:
    if not isinstance(tree, dict):
        raise UserError(f"{folder / FILE_NAME} is not a JSON object.")
    if tree.get("format") != FORMAT:
        raise UserError(
            f"{folder / FILE_NAME} has format {tree.get('format')!r}; this version reads format {FORMAT} only. "
            "A newer Tuneship wrote it: use that one."
        )
    if tree["id"] != folder.name and not folder.name.startswith("."):
        raise UserError(f"{folder / FILE_NAME} says that it is {tree['id']!r}: the folder was renamed.")
    artifacts = tuple(_artifact(entry, folder) for entry in tree["artifacts"])
    checks = tuple(_check(entry) for entry in tree.get("verification", ()))
    known = {entry.name for entry in fields(Manifest)} - {"artifacts", "verification"}
    return Manifest(
        artifacts=artifacts,
        verification=checks,
        **{name: _typed(name, value) for name, value in tree.items() if name in known},
    )


def _check(entry: Mapping[str, Any]) -> Check:
    check = Check(**entry)
    if not (isinstance(check.name, str) and isinstance(check.passed, bool) and isinstance(check.figures, dict)):
        raise TypeError(f"verification has {check.name!r}, which is no check")
    return check


def _typed(name: str, value: Any) -> Any:
    wanted: type = {"format": int, "id": str, "created": str, "config_sha256": str, "chat_template_sha256": str}.get(
        name, dict
    )
    if not isinstance(value, wanted):
        raise TypeError(f"{name} is not of type {wanted.__name__}")
    return value


def _artifact(entry: Mapping[str, Any], folder: Path) -> Artifact:
    artifact = Artifact(
        kind=str(entry["kind"]),
        relative=safe_path(str(entry["path"]), folder),
        bytes=int(entry["bytes"]),
        sha256=str(entry["sha256"]),
        quantization=None if (quantization := entry.get("quantization")) is None else str(quantization),
        root=folder,
    )
    if artifact.bytes < 0:
        raise ValueError(f"{artifact.relative} has a negative size")
    return artifact


def safe_path(path: str, folder: Path) -> str:
    """`path` if it stays below `folder`, also after following links; UserError otherwise."""
    parts = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{folder / FILE_NAME} names {path!r}, which leaves its folder. The manifest is not to be trusted."
        )
    root = folder.resolve()
    if not (root / path).resolve().is_relative_to(root):
        raise UserError(f"{folder / path} is a link that leaves its folder. The run is not to be trusted.")
    return path
