"""The whole plan of a config: memory, disk and time with the items of each, and what would make it fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstore import UserError
from trainer.config import TrainConfig
from trainer.gguf_files import BITS
from trainer.plan import GIB, Place, adapter_parameters, offloaded_bytes
from trainer.plan_data import DataSize
from trainer.plan_fit import Planner, Proposal, as_text, changed, differences, of_one_process
from trainer.plan_shape import Shape
from trainer.plan_time import rate, steps_of

UNITS = {"MIB": 1 << 20, "GIB": 1 << 30, "MB": 10**6, "GB": 10**9}
LARGEST_SHARD_BYTES = 5 * 10**9  # hubs cut weights into files of at most this size


@dataclass(frozen=True)
class Report:
    """A plan with everything that is printed of it. `limit_bytes` is None where no device is there or named."""

    config: TrainConfig
    place: Place
    planner: Planner
    data: DataSize
    proposal: Proposal
    limit_bytes: int | None
    disk: dict[str, int]
    host: dict[str, int]
    seconds: float | None

    @property
    def fits(self) -> bool | None:
        return None if self.limit_bytes is None else self.proposal.peak.bytes <= self.limit_bytes


def make_report(
    config: TrainConfig, shape: Shape, place: Place, data: DataSize, limit_bytes: int | None, gpu_name: str = ""
) -> Report:
    """Pure but for the speed of a processor, which is tried for a moment."""
    planner = Planner(shape, place, data.lengths, data.mean_tokens or data.lengths.longest)
    proposal = planner.propose(config)
    speed, steps = rate(place, gpu_name, config.model.weights), steps_of(config, data.rows)
    if speed and place.device == "cpu":  # which the processes share
        speed /= config.training.processes
    seconds = proposal.operations * steps / speed if speed and steps else None
    disk, host = disk_items(config, shape), host_items(config, shape, place, data)
    return Report(config, place, planner, data, proposal, limit_bytes, disk, host, seconds)


def disk_items(config: TrainConfig, shape: Shape) -> dict[str, int]:
    """Most disk at once. A base that is in the store already has taken its part."""
    sixteen_bit = 2 * shape.parameters
    quantized = int(sum(BITS.get(name, 8.0) / 16 for name in config.export.quantizations) * sixteen_bit)
    items = {
        "base in the store": sixteen_bit,
        "checkpoints": (config.training.keep_checkpoints + 1) * 12 * adapter_parameters(config, shape),
        "merged weights": sixteen_bit,
        "BF16 GGUF": sixteen_bit,
        f"GGUF {', '.join(config.export.quantizations)}, run and base": 2 * quantized,
    }
    hub = config.model.base.startswith(("hub:", "modelscope:"))
    return {"download cache": sixteen_bit, **items} if hub else items


def host_items(config: TrainConfig, shape: Shape, place: Place, data: DataSize) -> dict[str, int]:
    """Host memory beside a GPU, without the programs' own; on a CPU the peak itself is host memory."""
    if place.device == "cpu":
        return {}
    shard = min(LARGEST_SHARD_BYTES, 2 * shape.parameters)
    return {
        "offloaded checkpoints": config.training.processes
        * offloaded_bytes(of_one_process(config), shape, data.lengths),
        "merging a file of weights": 2 * shard,
    }


def parse_size(text: str) -> int:
    """ "24GiB", "80GB", "900 MiB" in bytes."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    if not found or found[2].upper() not in UNITS or not float(found[1]):
        raise UserError(f"--fit {text!r} is no size: write 24GiB, 80GB or 900MiB.")
    return int(float(found[1]) * UNITS[found[2].upper()])


def as_json(report: Report, fitted: Proposal | None, wants_fit: bool) -> dict[str, Any]:
    """One document; sizes in bytes, no figure is null."""
    peak, limit = report.proposal.peak, report.limit_bytes
    document = {
        "device": report.place.device,
        "backend": report.place.backend,
        "processes": report.config.training.processes,
        "data": report.data.source,
        "longest_row_tokens": report.planner.lengths.longest,
        "parameters": report.planner.shape.parameters,
        "peak_bytes": peak.bytes,
        "peak_items_bytes": peak.items,
        "host_items_bytes": report.host,
        "disk_bytes": sum(report.disk.values()),
        "disk_items_bytes": report.disk,
        "training_s": report.seconds,
        "limit_bytes": limit,
        "fits": report.fits,
    }
    if report.fits is False:
        document["remedies"] = [_summary(report, each) for each in report.planner.remedies(report.config)]
    if wants_fit:
        document["proposal"] = _summary(report, fitted) if fitted else None
    return document


def _summary(report: Report, proposal: Proposal) -> dict[str, Any]:
    fits = None if report.limit_bytes is None else proposal.peak.bytes <= report.limit_bytes
    changes = differences(report.config, proposal.config)
    cost = proposal.operations / report.proposal.operations
    return {"changes": changes, "peak_bytes": proposal.peak.bytes, "fits": fits, "times_cost": round(cost, 3)}


def as_lines(report: Report, fitted: Proposal | None, wants_fit: bool) -> list[str]:
    """What `plan` prints."""
    kind = "GPU memory" if report.place.device == "cuda" else "memory"
    whose = f" of each of {count} processes" if (count := report.config.training.processes) > 1 else ""
    lines = [
        f"model: {report.planner.shape.parameters / 1e6:,.0f} million parameters ({report.planner.shape.family})",
        f"data: {report.data.source}; longest {report.planner.lengths.longest} tokens",
        f"backend: {report.place.backend} on {report.place.device}",
        *_table(f"peak {kind}{whose}", report.proposal.peak.items),
        *(_table("host memory beside the programs", report.host) if report.host else []),
        *_table("disk at its peak", report.disk),
        f"time of the training alone: {_duration(report.seconds)}",
    ]
    if report.limit_bytes is not None:
        lines.append(f"it {'fits' if report.fits else 'does not fit'} into {_gib(report.limit_bytes)}")
    if report.fits is False:
        lines += remedy_lines(report)
    return lines + (_fit_lines(report, fitted) if wants_fit else [])


def remedy_lines(report: Report) -> list[str]:
    """Single changes and what each would need."""
    lines = ["what each change alone would need:"]
    for each in report.planner.remedies(report.config):
        fits = "fits" if report.limit_bytes and each.peak.bytes <= report.limit_bytes else "does not fit"
        lines.append(f"  {_gib(each.peak.bytes):>10}  {fits:12}  {as_text(differences(report.config, each.config))}")
    return lines


def _fit_lines(report: Report, fitted: Proposal | None) -> list[str]:
    if fitted is None:
        return [f"no plan fits: the weights, adapters and optimizer take {_gib(report.proposal.peak.fixed_bytes)}"]
    if not (changes := differences(report.config, fitted.config)):
        return ["the fastest plan that fits is this config itself"]
    cost = fitted.operations / report.proposal.operations
    return [
        f"the fastest plan that fits needs {_gib(fitted.peak.bytes)} and {cost:.2f} times the work of this config:",
        f"  {as_text(changes)}",
    ]


def _table(title: str, items: dict[str, int]) -> list[str]:
    rows = [f"  {_gib(size):>10}  {name}" for name, size in items.items() if size]
    return [f"{title}: {_gib(sum(items.values()))}", *rows]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not predicted: nothing was measured on such a device, or the number of rows is not known"
    return f"about {seconds:.0f} s" if seconds < 600 else f"about {seconds / 60:.0f} min"


def resolved(config: TrainConfig, device: str, here: str) -> TrainConfig:
    """The config with model.weights = "auto" decided; for another device than this machine's, in 16 bits."""
    if config.model.weights != "auto":
        return config
    if device == here:
        from trainer.machine import precision

        return changed(config, {"model.weights": precision("auto")})
    return changed(config, {"model.weights": "bf16" if device == "cuda" else "fp32"})


def needs_gpu(config: TrainConfig) -> bool:
    """Whether the config names what only a GPU has."""
    return (
        config.model.weights == "4bit"
        or config.training.optimizer == "adamw_8bit"
        or config.training.gradient_checkpointing == "unsloth"
        or config.training.backend == "unsloth"
    )


def plan_config(
    config: TrainConfig, store: Path, *, device: str, model_config: Path | None, limit_bytes: int | None
) -> Report:
    """Everything that `trainer plan` does: nothing is downloaded, nothing is loaded."""
    from trainer.machine import compute_device, free_memory_bytes, gpu_name
    from trainer.plan_data import estimated
    from trainer.plan_shape import find_shape

    shape = find_shape(config.model.base, store, model_config)
    here = compute_device()
    if device == "auto":
        device = "cuda" if here == "cuda" or needs_gpu(config) else "cpu"
    if device == "cpu" and needs_gpu(config):
        raise UserError(
            "This config names what only a GPU has (4bit, adamw_8bit, unsloth); plan it with --device cuda."
        )
    config = resolved(config, device, here)
    named = config.training.backend
    backend = named if named != "auto" else ("unsloth" if device == "cuda" else "transformers")
    if limit_bytes is None and device == here:
        limit_bytes = free_memory_bytes(config.training.processes)
    name = gpu_name() if device == "cuda" else ""
    return make_report(config, shape, Place(device, backend), estimated(config), limit_bytes, name)
