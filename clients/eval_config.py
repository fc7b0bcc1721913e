"""How to ask, as a file: every field of it is an option of `eval` too, and the option wins."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clients.ask import AskOptions
from modelstore import UserError


class EvalConfig(BaseModel):
    """Checked values; the description of a field is its reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field("base", min_length=1, description="the model to compare with")
    tuned: str = Field("tuned", min_length=1, description="the model in question")
    also: tuple[str, ...] = Field((), description="further models, each compared with base")
    system: str = Field("", description="system prompt of every question without its own")
    max_tokens: int = Field(64, ge=1, le=1_000_000, description="longer answers are cut off and counted")
    samples: int = Field(1, ge=1, le=1000, description="answers to each question; above 1 with a temperature")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy")
    seed: int = Field(3407, ge=0, le=2**31, description="sample n is drawn with seed + n")
    stop: tuple[str, ...] = Field((), max_length=4, description="texts that end an answer")
    concurrency: int = Field(0, ge=0, le=1024, description="requests at once; 0: as the server's slots, else 8")
    attempts: int = Field(4, ge=1, le=20, description="a request that fails so often counts as failed")
    timeout_s: float = Field(120.0, gt=0, le=86400, description="for the next piece of a stream")
    gate_level: float = Field(0.05, gt=0, lt=0.5, description="highest rate of false alarms of the gate")

    def ask_options(self) -> AskOptions:
        """The part that the asking needs."""
        chosen = self.model_dump(exclude={"base", "tuned", "also", "gate_level"})
        return AskOptions(**chosen)

    @property
    def models(self) -> list[str]:
        """The reference first; a name given twice is asked once."""
        return list(dict.fromkeys((self.base, self.tuned, *self.also)))


def read_config(path: Path | None, options: dict[str, Any]) -> EvalConfig:
    """File and options together. Raises UserError that lists every mistake with its key and the allowed values."""
    values = {**(_read(path) if path else {}), **options}
    try:
        config = EvalConfig(**values)
    except ValidationError as error:
        where = f"{path} and the options" if path else "The options"
        lines = "\n".join(f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"{where} have {error.error_count()} mistake(s):\n{lines}") from None
    if config.base == config.tuned:
        raise UserError(f"base and tuned are both {config.base!r}: a model is not compared with itself.")
    if config.samples > 1 and not config.temperature:
        raise UserError("samples = 2 or more needs a temperature above 0: greedy answers are all the same.")
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no config file at {path}. configs/eval.toml shows how one looks.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
