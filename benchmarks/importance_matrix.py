#!/usr/bin/env python3
"""What an importance matrix of the training rows gains: each quantization of a run with and without it, on questions
that were never trained.

usage: make llamacpp, then .venv/trainer/bin/python benchmarks/importance_matrix.py STORE RUN RESULT.json

Another llama.cpp that TUNESHIP_LLAMACPP names needs llama-perplexity too. Measured against the run's BF16 GGUF: mean KL
divergence over the second half of each stretch of 512 tokens of the questions with their answers, rendered by the chat
template, and the share of positions with the same most probable token; and how many questions llama-server answers
rightly (greedy, one by one).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clients.questions import Question, read_questions  # noqa: E402
from clients.scorers import score  # noqa: E402
from modelstore import Run, Store  # noqa: E402
from modelstore.machine import cpu_threads, llamacpp_folder  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.gguf_files import convert, quantize, tool_version  # noqa: E402
from trainer.gguf_probe import llama_server, post  # noqa: E402
from trainer.importance import calibration_text, importance_matrix  # noqa: E402
from trainer.machine import hardware, package_versions  # noqa: E402
from trainer.pipeline import load_tokenizer  # noqa: E402
from trainer.prepare import prepare  # noqa: E402
from trainer.rows import read_rows  # noqa: E402

QUANTIZATIONS = ("Q8_0", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
DATA = ROOT / "data" / "handbook-en"


def calibration(store: Store, run: Run) -> str:
    """As the trainer makes it for this run."""
    config = TrainConfig.model_validate(run.manifest.config)
    tokenizer = load_tokenizer(store.base(run.manifest.base["id"]))
    rows = read_rows(DATA / "train.jsonl", max_bad_share=0)
    length, data = config.model.max_length_tokens, config.data
    prepared = prepare(
        rows,
        tokenizer,
        max_length_tokens=length,
        held_out_share=data.held_out_share,
        seed=data.seed,
        questions=None,
    )
    return calibration_text(prepared.train, tokenizer)


def held_out_text(store: Store, run: Run, questions: list[Question]) -> str:
    """Every question with its answer, as the model would see them."""
    tokenizer = load_tokenizer(store.base(run.manifest.base["id"]))
    talks = [[*each.conversation(), {"role": "assistant", "content": each.answer}] for each in questions]
    return "".join(tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks)


def perplexity(gguf: Path, *options: str) -> str:
    """What llama-perplexity says of the file."""
    program = str((llamacpp_folder() or Path()) / "llama-perplexity")
    argv = [program, "-m", str(gguf), "-c", "512", "-t", str(cpu_threads()), *options]
    return subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def divergence(gguf: Path, logits: Path) -> dict[str, float]:
    """Nats with the standard error of the mean, and the share of equal first tokens."""
    said = perplexity(gguf, "--kl-divergence", "--kl-divergence-base", str(logits))
    mean = re.search(r"Mean +KLD: +([\d.e-]+) ± +([\d.e-]+)", said)
    same = re.search(r"Same top p: +([\d.]+)", said)
    if not mean or not same:
        sys.exit(f"llama-perplexity said no divergence of {gguf.name}:\n{said[-1000:]}")
    return {"kl_nats": float(mean[1]), "kl_error": float(mean[2]), "same_top": round(float(same[1]) / 100, 5)}


def right_answers(gguf: Path, questions: list[Question]) -> int:
    """Greedy answers that say what the question demands."""
    wish = {"llamacpp": str(llamacpp_folder()), "gguf": str(gguf), "adapter": "", "context": 1024}
    right = 0
    with llama_server(wish | {"gpu_layers": 0, "threads": cpu_threads()}) as url:
        for question in questions:
            body = {"messages": question.conversation(), "temperature": 0, "max_tokens": 96}
            reply = post(url, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
            right += score(question, reply).strict
    return right


def measure(store: Store, run: Run, folder: Path) -> dict[str, Any]:
    """Every file is made, measured and removed; the 16-bit one stays, and so do its logits."""
    questions = read_questions(DATA / "questions.jsonl")
    source, logits, text = folder / "BF16.gguf", folder / "logits", folder / "held-out.txt"
    convert(run.folder("merged"), source, run.manifest.base["id"])
    rows = calibration(store, run)
    began = time.monotonic()
    matrix = importance_matrix(source, rows)
    matrix_s = round(time.monotonic() - began, 1)
    text.write_text(held_out_text(store, run, questions), encoding="utf-8")
    perplexity(source, "-f", str(text), "--save-all-logits", str(logits))
    files: list[dict[str, Any]] = [{"quantization": "BF16", "right": right_answers(source, questions)}]
    for name in QUANTIZATIONS:
        for used in (None, matrix):
            target = folder / "quantized.gguf"
            quantize(source, target, name, cpu_threads(), used)
            row = {"quantization": name, "matrix": bool(used), "bytes": target.stat().st_size}
            files.append(row | divergence(target, logits) | {"right": right_answers(target, questions)})
            print(json.dumps(files[-1]), file=sys.stderr, flush=True)
            target.unlink()
    return {
        "questions": len(questions),
        "matrix_s": matrix_s,
        "training_text_bytes": len(rows.encode()),
        "files": files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("run")
    parser.add_argument("result", type=Path)
    wish = parser.parse_args()
    store = Store(wish.store)
    run = store.run(wish.run)
    head = {
        "command": f"benchmarks/importance_matrix.py STORE RUN {wish.result.name}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "packages": package_versions() | tool_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "base": run.manifest.base["id"],
        "config_sha256": run.manifest.config_sha256,
    }
    with tempfile.TemporaryDirectory() as folder:
        document = head | measure(store, run, Path(folder))
    wish.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
