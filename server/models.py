"""Which files a run is served from: the run's GGUF and its base's GGUF of the same quantization."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from modelstore import Artifact, Base, Run, Store, UserError


@dataclass(frozen=True)
class ServedModel:
    """One engine's model. `alias` is what answers call it, `names` are what requests may call it."""

    label: str
    alias: str
    names: tuple[str, ...]
    source_id: str
    gguf: Artifact
    chat_template_sha256: str


@dataclass(frozen=True)
class Selection:
    """A run, its base, and the two models that are served."""

    run: Run
    base: Base
    tuned_model: ServedModel
    base_model: ServedModel

    @property
    def models(self) -> tuple[ServedModel, ServedModel]:
        """Tuned first: it answers when a request names no model."""
        return self.tuned_model, self.base_model


def select(store: Store, ref: str, quantization: str | None) -> Selection:
    """Resolve a channel or run and pick the artifacts; reads manifests only."""
    run = store.run(ref)
    wanted = quantization or run.manifest.serve.get("quantization")
    if not isinstance(wanted, str):
        raise UserError(f"{run.id} does not say which quantization to serve. Choose one with --quantization.")
    base_id = run.manifest.base.get("id")
    if not isinstance(base_id, str):
        raise UserError(f"{run.path} does not name its base model; it was not written by this kit.")
    base = store.base(base_id)
    tuned_file, base_file = run.artifact("gguf", wanted), base.artifact("gguf", wanted)
    return Selection(
        run,
        base,
        ServedModel("tuned", run.id, (run.id, "tuned"), run.id, tuned_file, run.manifest.chat_template_sha256),
        ServedModel("base", "base", ("base",), base.id, base_file, base.manifest.chat_template_sha256),
    )


def check_files(store: Store, selection: Selection) -> None:
    """Size and SHA-256 of every file of the run and of the base's served file; UserError names the file."""
    base = selection.base
    served_only = replace(base, manifest=replace(base.manifest, artifacts=(selection.base_model.gguf,)))
    parts = [replace(selection.run, manifest=replace(selection.run.manifest, artifacts=(artifact,)))
             for artifact in selection.run.manifest.artifacts]  # fmt: skip
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        list(pool.map(store.check, [*parts, served_only]))


def owner_path(model: ServedModel) -> Path:
    """The file that the engine loads, absolute: the engine runs in another folder."""
    return model.gguf.path.resolve()
