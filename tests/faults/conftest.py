"""One small model for all tests of faults, and programs that start without importing their libraries again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads would not survive the forks of these tests

from tests import quick_programs
from tests.faults import kill_fuzz, tiny_model

kill_fuzz.import_libraries()

from trainer.config import TrainConfig  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _quick_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with quick_programs.in_use(tmp_path_factory.mktemp("tools")):
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return tiny_model.write_model(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file."""
    return tiny_model.write_data(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture
def wish(base: Path, data: Path) -> TrainConfig:
    """A whole short training."""
    return TrainConfig.model_validate(tiny_model.config(base, data))
