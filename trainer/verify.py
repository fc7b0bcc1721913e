"""Proves that the exported files are the fine-tune, each loaded by the engine that will serve it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelstore import ArtifactSpec, Base, Check
from modelstore.machine import cpu_threads, llamacpp_folder
from trainer.agreement import Agreement, compare, compare_listed
from trainer.children import end_children, run
from trainer.gguf_files import child_environment
from trainer.gguf_weights import compare_gguf
from trainer.machine import compute_device, multiplies_bf16
from trainer.probes import MAX_ANSWER_TOKENS, Measured, Probe, measure
from trainer.render import prompt_text
from trainer.settings_check import changed_settings, differing_settings
from trainer.weights import WeightError, compare_trained, compare_weights

PROBE_TEXTS = (
    "How do I reset my API key?",
    "  two spaces,\ttab\nand a new line 1234567890 3.14",
    "Überprüfung der Größe: 12 € für Çelik?",
    "报销单被财务驳回后怎么办？ 需要在 9 天内申诉。",
    "emoji 🚢🇩🇪 and rtl שלום مرحبا",
    "<|im_end|> </s> <|end|> typed by a user",
)


@dataclass(frozen=True)
class Limits:
    """What a good export keeps to. docs/verification.md shows the good and the broken exports that they tell apart."""

    top1: float
    kl: float
    same_answers: float


MERGED = Limits(top1=0.98, kl=0.02, same_answers=0.8)
EIGHT_BITS_AND_MORE = Limits(top1=0.95, kl=0.05, same_answers=0.7)
FEWER_BITS = Limits(top1=0.80, kl=0.6, same_answers=0.3)
LARGEST_WEIGHT_ERROR = 0.01  # of the tensor's largest magnitude; bf16 rounds to 0.004
CARRIED = 0.3  # from 1: the share of the fine-tune's change of the weights that a GGUF file has
STANDARD_ERRORS = 4  # of that share, where the change is small against the rounding of the quantization
LEAST_CHANGE = 0.001  # nats by which a fine-tune differs from its base


@dataclass(frozen=True)
class Reference:
    """The trained model with its adapter, and the base, measured before anything was exported.

    `four_bits`: the base was in 4 bits while it was trained, so the merged 16-bit weights answer a little differently.
    """

    probes: list[Probe]
    tuned: Measured
    base: Measured
    four_bits: bool

    @property
    def answers(self) -> list[list[int]]:
        """The trained answers, as token ids."""
        return [probe.answer_ids for probe in self.probes]

    @property
    def learnt(self) -> list[int]:
        """The probes that the fine-tune answers exactly as it was trained to."""
        return [number for number, ids in enumerate(self.answers) if self.tuned.greedy[number] == ids]


def measure_reference(
    model: Any, tokenizer: Any, probes: list[Probe], *, four_bits: bool = False, base: Path | None = None
) -> Reference:
    """`model` is the model as trained: a PeftModel, or one of which every weight was trained, and the `base` folder."""
    tuned = measure(model, tokenizer, probes)
    if base:
        return Reference(probes, tuned, _measure_folder(base, tokenizer, probes), four_bits)
    with model.disable_adapter():
        untuned = measure(model, tokenizer, probes)
    return Reference(probes, tuned, untuned, four_bits)


def verify_merged(
    folder: Path,
    base: Base,
    tokenizer: Any,
    reference: Reference,
    say: Callable[[str], None],
    trained: Path | None = None,
) -> tuple[list[Check], Measured]:
    """The checks that need no GGUF file, and the merged model's answers. `trained`: weights that were trained whole.

    A failed check does not stop the rest, here and in verify_files.
    """
    checks = [_differs_from_base(reference)]
    said = "merged weights are the trained ones" if trained else "merged weights are base + adapter"
    say(f"verify: {said}")
    if trained:
        checks.append(_exact_weights(said, compare_trained(base.folder("hf"), trained, folder / "merged")))
    else:
        checks.append(_exact_weights(said, compare_weights(base.folder("hf"), folder / "adapter", folder / "merged")))
    checks.append(_same_settings(base.folder("hf"), folder / "merged"))
    say("verify: merged weights answer")
    merged = _measure_folder(folder / "merged", tokenizer, reference.probes)
    return [*checks, _check_merged(merged, reference)], merged


def verify_files(
    folder: Path,
    base: Base,
    artifacts: Sequence[ArtifactSpec],
    tokenizer: Any,
    reference: Reference,
    merged: Measured,
    say: Callable[[str], None],
) -> list[Check]:
    """Every GGUF file in llama.cpp, one at a time, against the `merged` model; its weights are read meanwhile."""
    files = [spec for spec in artifacts if spec.kind == "gguf"]
    checks = []
    with ThreadPoolExecutor(1) as engine:  # the work is done by child processes
        answers = [engine.submit(ask_engine, folder / spec.path, reference.probes) for spec in files]
        try:
            for spec, found in zip(files, answers, strict=True):
                say(f"verify: {spec.path} in llama.cpp")
                gguf = folder / spec.path
                checks.append(_holds_weights(gguf, base.folder("hf"), folder / "merged"))
                checks.append(_holds_settings(gguf, folder / "merged"))
                checks += _check_gguf(gguf, spec.quantization or "", found, tokenizer, reference, merged)
        except BaseException:
            engine.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise
    return checks


def _differs_from_base(reference: Reference) -> Check:
    found = compare(reference.tuned.logprobs, reference.base.logprobs, reference.answers)
    changed = sum(a != b for a, b in zip(reference.tuned.greedy, reference.base.greedy, strict=True))
    figures: dict[str, float | int | str] = {
        "kl_nats": found.kl,
        "changed_answers": changed,
        "answers": len(reference.answers),
    }
    return Check("tuned differs from base", found.kl >= LEAST_CHANGE, figures, f"kl_nats >= {LEAST_CHANGE}")


def _exact_weights(name: str, found: WeightError) -> Check:
    figures: dict[str, float | int | str] = {"worst_error": found.worst, "tensors": found.tensors}
    figures |= {"adapted": found.adapted}
    if found.missing or found.worst > LARGEST_WEIGHT_ERROR:
        figures["where"] = found.missing or found.worst_tensor
    passed = not found.missing and found.worst <= LARGEST_WEIGHT_ERROR and found.adapted > 0
    limit = f"every tensor, worst_error <= {LARGEST_WEIGHT_ERROR}"
    return Check(name, passed, figures, limit)


def _same_settings(base: Path, merged: Path) -> Check:
    changed = changed_settings(base, merged)
    figures: dict[str, float | int | str] = {"changed": len(changed)}
    if changed:
        figures["where"] = ", ".join(changed)
    return Check("merged has the base model's settings", not changed, figures, "config.json as the base's")


def _holds_settings(gguf: Path, merged: Path) -> Check:
    name, limit = f"{gguf.name} has the model's settings", "rotary base, heads, norms and lengths as in config.json"
    try:
        different, compared = differing_settings(gguf, merged)
    except (ValueError, KeyError, IndexError) as error:
        return Check(name, False, {"error": repr(error)[:300]}, limit)
    figures: dict[str, float | int | str] = {"compared": compared, "different": len(different)}
    if different:
        figures["where"] = "; ".join(different)
    return Check(name, not different, figures, limit)


def _measure_folder(folder: Path, tokenizer: Any, probes: Sequence[Probe]) -> Measured:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if multiplies_bf16() else torch.float32,  # the same values, in arithmetic that is native here
        use_safetensors=True,
        device_map=compute_device(),
    )
    return measure(model, tokenizer, probes)


def _check_merged(merged: Measured, reference: Reference) -> Check:
    sizes = {"vocabulary": merged.logprobs[0].shape[-1], "trained_vocabulary": reference.tuned.logprobs[0].shape[-1]}
    if len(set(sizes.values())) > 1:
        return Check("merged is the fine-tune", False, {**sizes}, "the same vocabulary")
    found = compare(reference.tuned.logprobs, merged.logprobs, reference.answers)
    return agreement("merged", found, FEWER_BITS if reference.four_bits else MERGED, reference, merged.greedy)


def agreement(
    name: str, found: Agreement, limits: Limits, reference: Reference, greedy: Sequence[Sequence[int]]
) -> Check:
    """Greedy answers are compared where the fine-tune gives the trained answer; elsewhere near-ties decide."""
    learnt = reference.learnt
    same = sum(list(greedy[number]) == reference.answers[number] for number in learnt)
    passed = found.top1 >= limits.top1 and found.kl <= limits.kl and same >= limits.same_answers * len(learnt)
    figures: dict[str, float | int | str] = {"top1": found.top1, "kl_nats": found.kl}
    figures |= {"loss_added": found.loss_added, "same_answers": same, "of": len(learnt)}
    limit = f"top1 >= {limits.top1}, kl_nats <= {limits.kl}, same_answers >= {limits.same_answers:.0%}"
    return Check(f"{name} is the fine-tune", passed, figures, limit)


def _holds_weights(gguf: Path, base: Path, merged: Path) -> Check:
    name, limit = f"{gguf.name} holds the merged weights", f"worst_error <= 1, carried 1 +- {CARRIED}"
    try:
        found = compare_gguf(gguf, base, merged)
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        return Check(name, False, {"error": repr(error)[:300]}, limit)
    figures: dict[str, float | int | str] = {"worst_error": found.worst, "tensors": found.tensors}
    if found.carried is not None:
        figures |= {"carried": found.carried, "carried_error": found.carried_error}
    if found.unknown:
        figures["unknown_tensors"] = found.unknown
    if found.worst > 1:
        figures["where"] = found.worst_tensor
    within = max(CARRIED, STANDARD_ERRORS * found.carried_error)
    carried = found.carried is None or abs(found.carried - 1) <= within
    return Check(name, found.worst <= 1 and carried and not found.unknown, figures, limit)


def _check_gguf(
    gguf: Path, quantization: str, answer: Future[Any], tokenizer: Any, reference: Reference, merged: Measured
) -> list[Check]:
    try:
        found = answer.result()
    except (subprocess.CalledProcessError, ValueError) as error:
        return [does_not_load(gguf, error)]
    measured = compare_listed(merged.logprobs, found["positions"], reference.answers)
    few_bits = not quantization.startswith(("Q8", "F16", "BF16"))
    limits = FEWER_BITS if few_bits else EIGHT_BITS_AND_MORE
    return [
        _same_tokens(gguf, tokenizer, found),
        _same_template(gguf, tokenizer, found),
        agreement(gguf.name, measured, limits, reference, greedy_ids(found, tokenizer)),
        _stops(gguf, reference, found),
    ]


def does_not_load(gguf: Path, error: Exception) -> Check:
    """The failed check of a file that the engine refused."""
    said = str(getattr(error, "stderr", "") or error).strip()[-300:]
    return Check(f"{gguf.name} loads", False, {"error": said}, "llama.cpp loads it and answers")


def greedy_ids(found: dict[str, Any], tokenizer: Any) -> list[list[int]]:
    """The engine's answers with the end token, which it leaves out where it stopped at it."""
    end, answers = tokenizer.eos_token_id, found["answers"]
    ids: list[list[int]] = [answer["ids"] for answer in answers]
    ended = [answer["stop_type"] == "eos" for answer in answers]
    return [[*each, end] if stop and each[-1:] != [end] else each for each, stop in zip(ids, ended, strict=True)]


def ask_engine(gguf: Path, probes: Sequence[Probe], adapter: Path | None = None) -> dict[str, Any]:
    """What llama.cpp answers with this file, and with an `adapter` GGUF applied to it; trainer/gguf_probe.py says what.

    Raises CalledProcessError where it does not load, ValueError where its probabilities are not numbers.
    """
    import torch

    wish = {
        "gguf": str(gguf),
        "adapter": str(adapter or ""),
        "threads": cpu_threads(),
        "context": 512 + max(len(p.prompt_ids) + len(p.answer_ids) for p in probes) + MAX_ANSWER_TOKENS,
        "gpu_layers": 999 if torch.cuda.is_available() else 0,
        "llamacpp": str(llamacpp_folder() or ""),
        "texts": PROBE_TEXTS,
        "probes": [asdict(probe) for probe in probes],
        "max_tokens": MAX_ANSWER_TOKENS,
    }
    argv = [sys.executable, "-m", "trainer.gguf_probe"]
    done = run(argv, json.dumps(wish), env=child_environment(), stderr=subprocess.PIPE)
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout)
    if any(value is None for probe in found["positions"] for top in probe for _, value in top):
        raise ValueError("the engine's probabilities are not numbers")
    return found


def _same_tokens(gguf: Path, tokenizer: Any, found: dict[str, Any]) -> Check:
    expected = [tokenizer(prompt_text(tokenizer, text), add_special_tokens=False)["input_ids"] for text in PROBE_TEXTS]
    same = sum(a == b for a, b in zip(expected, found["token_ids"], strict=True))
    figures: dict[str, float | int | str] = {"same": same, "texts": len(PROBE_TEXTS)}
    if same < len(PROBE_TEXTS):
        figures["first_difference"] = next(
            text for text, a, b in zip(PROBE_TEXTS, expected, found["token_ids"], strict=True) if a != b
        )
    return Check(f"{gguf.name} makes the same prompt tokens", same == len(PROBE_TEXTS), figures, "all the same")


def _same_template(gguf: Path, tokenizer: Any, found: dict[str, Any]) -> Check:
    template = found["chat_template"].strip() == tokenizer.chat_template.strip()
    end = found["end_token"] == tokenizer.eos_token
    figures: dict[str, float | int | str] = {"template": int(template), "end_token": found["end_token"]}
    name = f"{gguf.name} has the chat template and end token"
    return Check(name, template and end, figures, f"the tokenizer's own, {tokenizer.eos_token}")


def _stops(gguf: Path, reference: Reference, found: dict[str, Any]) -> Check:
    learnt = reference.learnt
    stopped = sum(found["answers"][number]["stop_type"] == "eos" for number in learnt)
    figures: dict[str, float | int | str] = {"stopped": stopped, "of": len(learnt)}
    return Check(f"{gguf.name} stops at the end of the turn", stopped >= 0.9 * len(learnt), figures, "stopped >= 90%")
