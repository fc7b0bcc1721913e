"""The model store on disk: bases, runs, channels. Readers need no lock; each staging folder has one writer."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelstore.errors import UserError
from modelstore.files import exclusive_lock, sha256, sync, sync_tree, told_apart, write_atomically
from modelstore.manifest import FILE_NAME, Artifact, ArtifactSpec, Manifest, read_manifest, safe_path, to_json
from modelstore.promotion import Promotion, append, objections, this_user

CHANNELS = ("current", "previous")
ID = re.compile(r"^[a-z0-9][a-z0-9._-]{0,127}$")


@dataclass(frozen=True)
class Run:
    """A published run; its folder never changes."""

    id: str
    path: Path
    manifest: Manifest

    def artifact(self, kind: str, quantization: str | None = None) -> Artifact:
        """The one file of this kind (and quantization). Raises UserError that lists what there is."""
        found = [entry for entry in self.manifest.artifacts if entry.kind == kind]
        if quantization:
            found = [entry for entry in found if entry.quantization == quantization]
        if len(found) != 1:
            wanted = f"{kind} {quantization}" if quantization else kind
            there = ", ".join(sorted({f"{e.kind} {e.quantization or ''}".strip() for e in self.manifest.artifacts}))
            raise UserError(f"{self.id} has {len(found)} files of kind {wanted!r}. It has: {there}.")
        return found[0]

    def folder(self, kind: str) -> Path:
        """The folder that holds a kind of several files (adapter, merged, hf)."""
        tops = {entry.relative.split("/")[0] for entry in self.manifest.artifacts if entry.kind == kind}
        if len(tops) != 1:
            there = ", ".join(sorted({entry.kind for entry in self.manifest.artifacts}))
            raise UserError(f"{self.id} has no folder of kind {kind!r}. It has: {there}.")
        return self.path / tops.pop()


Base = Run  # a base model is published, read and checked in the same way


@dataclass(frozen=True)
class Staging:
    """A folder that readers do not see. `publish` makes it a run."""

    run_id: str
    path: Path
    _target: Path

    def publish(self, fields: Mapping[str, Any], artifacts: list[ArtifactSpec]) -> Run:
        """Hash and flush every file, write the manifest last, rename the folder into place.

        `fields` are manifest entries other than id, created, format and artifacts.
        """
        with told_apart(self.path):
            manifest = Manifest(
                id=self.run_id,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                artifacts=_described(self.path, artifacts),
                **{**fields, "verification": tuple(fields.get("verification", ()))},
            )
            sync_tree(self.path)
            write_atomically(self.path / FILE_NAME, to_json(manifest))
            if self._target.exists():
                raise UserError(f"{self._target} exists already; a published run is never replaced.")
            self.path.rename(self._target)
            sync(self._target.parent)
        return _open(self._target)


class Store:
    """A folder that holds base models, runs and channels."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def create(self) -> None:
        """Make the folders that are missing."""
        with told_apart(self.path):
            for name in ("bases", "runs", "channels", "reports", "cache", "work"):
                (self.path / name).mkdir(parents=True, exist_ok=True)

    @property
    def cache(self) -> Path:
        """May be deleted at any time."""
        return self.path / "cache"

    def work(self, run_id: str) -> Path:
        """Checkpoints of a run in training; may be deleted at any time without harm to a published run."""
        return self.path / "work" / _valid(run_id)

    def reports(self, run_id: str) -> Path:
        """Evaluation results of a run."""
        return self.path / "reports" / _valid(run_id)

    # ---------------------------------------------------------------- reading

    def runs(self) -> list[Run]:
        """All complete runs, oldest first."""
        return _all(self.path / "runs")

    def bases(self) -> list[Base]:
        """All complete base models."""
        return _all(self.path / "bases")

    def run(self, ref: str) -> Run:
        """A run by channel, id or unique beginning of an id."""
        if ref in CHANNELS:
            run_id = self.channel(ref)
            if run_id is None:
                raise UserError(f"The channel '{ref}' of the store at {self.path} names no run yet. {self._hint()}")
            return self._run(run_id)
        ids = [run.id for run in self.runs() if run.id == ref] or [r.id for r in self.runs() if r.id.startswith(ref)]
        if len(ids) != 1:
            fault = f"no run '{ref}'" if not ids else f"several runs that begin with '{ref}' ({', '.join(ids)})"
            raise UserError(f"There is {fault} in the store at {self.path}. {self._hint()}")
        return self._run(ids[0])

    def has_run(self, run_id: str) -> bool:
        """Whether the run is published."""
        return (self.path / "runs" / _valid(run_id) / FILE_NAME).exists()

    def base(self, base_id: str) -> Base:
        """A base model by its id."""
        if not self.has_base(base_id):
            known = ", ".join(base.id for base in self.bases()) or "none"
            raise UserError(f"There is no base model '{base_id}' in the store at {self.path}. It has: {known}.")
        return _open(self.path / "bases" / base_id)

    def has_base(self, base_id: str) -> bool:
        """Whether the base model is complete."""
        return (self.path / "bases" / _valid(base_id) / FILE_NAME).exists()

    def check(self, run: Run) -> None:
        """Raise UserError at the first file whose size or SHA-256 is not the manifest's."""
        for artifact in run.manifest.artifacts:
            safe_path(artifact.relative, run.path)
            if not artifact.path.is_file():
                raise UserError(f"{artifact.path} is missing. The run is damaged: restore it or train again.")
            size = artifact.path.stat().st_size
            if size != artifact.bytes:
                raise UserError(f"{artifact.path} has {size} bytes, the manifest says {artifact.bytes}. {_DAMAGED}")
        artifacts = run.manifest.artifacts
        for artifact, found in zip(artifacts, sha256(each.path for each in artifacts), strict=True):
            if found != artifact.sha256:
                raise UserError(f"{artifact.path} does not have the SHA-256 that its manifest states. {_DAMAGED}")

    def channel(self, name: str) -> str | None:
        """The run id that a channel names, or None."""
        try:
            return _valid((self.path / "channels" / name).read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{self.path / 'channels' / name} does not hold a run id.") from None

    # ---------------------------------------------------------------- writing

    @contextmanager
    def stage(self, run_id: str) -> Iterator[Staging]:
        """A staging folder for a run, locked against a second writer. An error leaves it for inspection."""
        with self._stage(self.path / "runs", run_id) as staging:
            yield staging

    @contextmanager
    def stage_base(self, base_id: str) -> Iterator[Staging]:
        """The same for a base model."""
        with self._stage(self.path / "bases", base_id) as staging:
            yield staging

    @contextmanager
    def _stage(self, parent: Path, name: str) -> Iterator[Staging]:
        target = parent / _valid(name)
        with exclusive_lock(self.path / "work" / f"{parent.name}-{name}.lock"), told_apart(self.path):
            if (target / FILE_NAME).exists():
                raise UserError(f"{target} is published already; a published run is never changed.")
            if target.exists():  # a file system that copies instead of renaming was interrupted
                shutil.rmtree(target)
            path = parent / f".staging-{name}"
            path.mkdir(parents=True, exist_ok=True)
            yield Staging(name, path, target)

    def add_to_base(self, base_id: str, files: Mapping[str, Path], artifacts: list[ArtifactSpec]) -> Base:
        """Move further files (relative path -> file) into a base model and rewrite its manifest."""
        with exclusive_lock(self.path / "work" / f"bases-{base_id}.lock", waits=True), told_apart(self.path):
            base = self.base(base_id)  # as it is now that nobody else writes
            for relative, file in files.items():
                target = base.path / safe_path(relative, base.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                sync(file)
                shutil.move(file, target)
                sync(target.parent)
            known = tuple(entry for entry in _open(base.path).manifest.artifacts if entry.relative not in files)
            grown = replace(base.manifest, artifacts=known + _described(base.path, artifacts))
            write_atomically(base.path / FILE_NAME, to_json(grown))
        return self.base(base_id)

    def promote(self, run_id: str, *, by: str = "", why: str = "", force: bool = False) -> Promotion:
        """`current` becomes this run and `previous` the one before; who did it and why is recorded.

        Raises UserError when a verification or the newest evaluation gate failed, unless `force` is set with a reason.
        """
        run = self._run(run_id)
        against = objections(run.manifest, self.reports(run.id))
        if against and not (force and why):
            raise UserError(
                f"{run.id} is not promoted: {'; '.join(against)}. To do it all the same, and have it recorded: "
                f"make promote RUN={run.id} ARGS='--force --why \"…\"'"
            )
        return self._name_current(run.id, "promote", by, why, tuple(against))

    def rollback(self, *, by: str = "", why: str = "") -> Promotion:
        """`current` and `previous` change places. Never refused: the run was good enough to be current before."""
        return self._name_current(self.run("previous").id, "rollback", by, why, ())

    def _name_current(self, run_id: str, action: str, by: str, why: str, against: tuple[str, ...]) -> Promotion:
        folder = self.path / "channels"
        with exclusive_lock(self.path / "work" / "channels.lock", waits=True), told_apart(self.path):
            before, now = self.channel("current"), datetime.now(UTC).isoformat(timespec="seconds")
            done = Promotion(now, action, run_id, before, by or this_user(), why, bool(against), against)
            append(folder, done)  # first, so that no change is without its record
            if before and before != run_id:
                write_atomically(folder / "previous", f"{before}\n".encode())
            write_atomically(folder / "current", f"{run_id}\n".encode())
        return done

    def remove(self, run_id: str) -> None:
        """Delete a run that no channel names."""
        run = self._run(run_id)
        for name in CHANNELS:
            if self.channel(name) == run.id:
                raise UserError(f"{run.id} is what the channel '{name}' names. Promote another run first.")
        with told_apart(run.path):
            doomed = run.path.with_name(f".removing-{run.id}")
            run.path.rename(doomed)  # readers see a whole run or none
            shutil.rmtree(doomed)

    def prune(self) -> list[str]:
        """Delete every run that no channel names, and what an interrupted removal left. Returns the ids."""
        for left in (self.path / "runs").glob(".removing-*"):
            shutil.rmtree(left)
        named = {self.channel(name) for name in CHANNELS}
        doomed = [run.id for run in self.runs() if run.id not in named]
        for run_id in doomed:
            self.remove(run_id)
        return doomed

    def _run(self, run_id: str) -> Run:
        if not self.has_run(run_id):
            raise UserError(f"There is no run '{run_id}' in the store at {self.path}. {self._hint()}")
        return _open(self.path / "runs" / run_id)

    def _hint(self) -> str:
        return "`make runs` lists what is there." if (self.path / "runs").is_dir() else "`make train` makes the first."


_DAMAGED = "The file was damaged or changed after publishing: restore it or train again."


def new_run_id(model_name: str, data_name: str, now: datetime | None = None) -> str:
    """An id that sorts by time and can be read: 20261123-2014-smollm2-handbook-7f3a."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{model_name}-{data_name}".lower()).strip("-")
    return f"{(now or datetime.now(UTC)):%Y%m%d-%H%M}-{words[:80]}-{secrets.token_hex(2)}"


def _valid(name: str) -> str:
    if not ID.match(name):
        raise UserError(f"{name!r} is no id: lower-case letters, digits, dots, dashes and underscores only.")
    return name


def _open(path: Path) -> Run:
    return Run(path.name, path, read_manifest(path))


def _all(parent: Path) -> list[Run]:
    if not parent.is_dir():
        return []
    return [_open(path) for path in sorted(parent.iterdir()) if ID.match(path.name) and (path / FILE_NAME).exists()]


def _described(root: Path, specs: list[ArtifactSpec]) -> tuple[Artifact, ...]:
    """Size and hash of every file that the specs name; a folder stands for all files in it."""
    found: list[tuple[ArtifactSpec, Path]] = []
    for spec in specs:
        top = root / safe_path(spec.path, root)
        files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        if not files or not all(file.is_file() for file in files):
            raise UserError(f"{top} was to be published and is missing or empty.")
        found += [(spec, file) for file in files]
    return tuple(
        Artifact(spec.kind, file.relative_to(root).as_posix(), file.stat().st_size, digest, spec.quantization, root)
        for (spec, file), digest in zip(found, sha256(file for _, file in found), strict=True)
    )
