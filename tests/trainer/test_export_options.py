"""The options of [export]: the adapter as a GGUF, and quantization by an importance matrix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from modelstore import Run, Store, UserError
from modelstore.machine import llamacpp_folder
from trainer import importance
from trainer.config import ExportConfig, TrainConfig
from trainer.gguf_adapter import compare_adapter
from trainer.importance import CHUNK_TOKENS, LEAST_CHUNKS, MOST_CHUNKS, calibration_text, imatrix_program
from trainer.pipeline import load_tokenizer, train
from trainer.progress import Reporter
from trainer.render import Example
from trainer.verify_options import _uses_matrix

HAS_IMATRIX = ((llamacpp_folder() or Path("/nowhere")) / "llama-imatrix").exists()


def config(base: Path, data: Path, **export: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": str(base), "max_length_tokens": 128},
            "data": {"path": str(data)},
            "lora": {"r": 8, "alpha": 16},
            "training": {"max_steps": 12, "learning_rate": 5e-3, "warmup_steps": 2},
            "export": export,
        }
    )


@pytest.fixture(scope="module")
def published(base_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run]:
    """A run with both options, or with the adapter's GGUF alone where no llama.cpp folder is named."""
    store = Store(tmp_path_factory.mktemp("store"))
    wish = config(base_folder, data, adapter_gguf=True, importance_matrix=HAS_IMATRIX)
    return store, train(wish, store, Reporter(), lambda: False, again=False).run


def test_the_adapter_is_published_as_a_gguf_and_proven(published: tuple[Store, Run]) -> None:
    store, run = published
    store.check(run)
    assert run.artifact("adapter-gguf").relative == "gguf/adapter.gguf"
    checks = {check.name: check for check in run.manifest.verification}
    held, answers = checks["adapter.gguf holds the adapter"], checks["base-Q8_0.gguf + adapter.gguf is the fine-tune"]
    assert held.passed and held.figures["tensors"] == 2 * 7 * 2 and held.figures["different"] == 0
    assert answers.passed and float(answers.figures["kl_nats"]) < float(
        checks["tuned differs from base"].figures["kl_nats"]
    )


def test_rows_of_queries_and_keys_lie_as_llama_cpp_wants_them(published: tuple[Store, Run]) -> None:
    """Its rotary pairs lie side by side: of a head's 16 rows the first half are at even places."""
    import numpy as np
    from gguf import GGUFReader
    from safetensors.numpy import load_file

    _, run = published
    there = {tensor.name: tensor.data for tensor in GGUFReader(run.artifact("adapter-gguf").path).tensors}
    trained = load_file(run.folder("adapter") / "adapter_model.safetensors")
    for theirs, ours, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2), ("v_proj", "attn_v", 0)):
        b = trained[f"base_model.model.model.layers.1.self_attn.{theirs}.lora_B.weight"]
        size = len(b) // max(1, heads)
        wanted = [
            head * size + half * size // 2 + n for head in range(heads) for n in range(size // 2) for half in (0, 1)
        ]
        assert np.array_equal(there[f"blk.1.{ours}.weight.lora_b"], b[wanted] if heads else b)


@pytest.mark.parametrize("fault", ["another value", "a tensor less", "another scale"])
def test_an_adapter_gguf_that_differs_is_found(published: tuple[Store, Run], tmp_path: Path, fault: str) -> None:
    from safetensors.torch import load_file, save_file

    store, run = published
    folder = tmp_path / "adapter"  # the adapter is changed rather than the file: one of the two is wrong
    shutil.copytree(run.folder("adapter"), folder)
    path, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(path)
    first = min(tensors)
    if fault == "another value":
        tensors[first][0, 0] += 1e-3
    if fault == "a tensor less":
        tensors = {name: each for name, each in tensors.items() if not name.startswith(first.split(".lora_")[0])}
    if fault == "another scale":
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 32}))
    save_file(tensors, path)
    base = store.base(run.manifest.base["id"]).folder("hf")
    found = compare_adapter(run.artifact("adapter-gguf").path, folder, base)
    wanted = {"another value": (1, 16.0), "a tensor less": (2, 16.0), "another scale": (0, 32.0)}[fault]
    assert (len(found.different), found.wanted_alpha) == wanted and found.alpha == 16.0


@pytest.mark.skipif(not HAS_IMATRIX, reason="no llama-imatrix: make llamacpp, or TUNESHIP_LLAMACPP")
def test_quantizations_say_that_the_matrix_made_them_and_the_base_s_do_not(published: tuple[Store, Run]) -> None:
    store, run = published
    made = [check for check in run.manifest.verification if "was quantized by the importance matrix" in check.name]
    assert len(made) == 2 and all(check.passed for check in made)
    assert sorted(path.name for path in (run.path / "gguf").iterdir()) == [
        "adapter.gguf",
        "tuned-Q4_K_M.gguf",
        "tuned-Q8_0.gguf",
    ]
    base = store.base(run.manifest.base["id"])
    assert not _uses_matrix(base.artifact("gguf", "Q4_K_M").path).passed
    told = run.artifact("gguf", "Q4_K_M").path.read_bytes()
    assert b"importance-matrix.gguf" in told and str(store.path).encode() not in told


def test_a_matrix_without_its_program_is_refused_before_training(
    base_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("llama-quantize", "llama-server"):
        (tmp_path / program).touch()
    monkeypatch.setenv("TUNESHIP_LLAMACPP", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} lacks it"):
        imatrix_program()
    monkeypatch.delenv("TUNESHIP_LLAMACPP")
    monkeypatch.setattr(importance, "llamacpp_folder", lambda: None)
    wish = config(base_folder, data, importance_matrix=True)
    with pytest.raises(UserError, match="no package brings it"):
        train(wish, Store(tmp_path), Reporter(), lambda: False, again=False)


def test_full_training_has_no_adapter_to_convert(base_folder: Path, data: Path) -> None:
    wish = config(base_folder, data, adapter_gguf=True)
    tree = wish.model_dump()
    tree["training"]["method"] = "full"
    with pytest.raises(ValueError, match="makes no adapter"):
        TrainConfig.model_validate(tree)
    assert ExportConfig().adapter_gguf is ExportConfig().importance_matrix is False


def test_the_calibration_text_is_bounded_and_long_enough(published: tuple[Store, Run]) -> None:
    store, run = published
    tokenizer = load_tokenizer(store.base(run.manifest.base["id"]))
    ids = tokenizer("<|im_start|>user\nWhich key?<|im_end|>\n", add_special_tokens=False)["input_ids"]
    row = Example(ids, [0] * len(ids))
    few, many = calibration_text([row], tokenizer), calibration_text([row] * 20_000, tokenizer)
    assert len(tokenizer(few)["input_ids"]) >= LEAST_CHUNKS * CHUNK_TOKENS
    limit = MOST_CHUNKS * CHUNK_TOKENS
    assert 0.5 * limit < many.count("Which key?") * len(ids) <= limit
    assert few.startswith("<|im_start|>user\nWhich key?<|im_end|>")
