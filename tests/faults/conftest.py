"""One small model for all tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cli import prepare_process

prepare_process()

from tests.faults import tiny_model  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402


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
