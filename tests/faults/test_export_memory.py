"""Memory that runs out after the training: the export goes on in less of it, or says so and keeps the training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelstore import Store, UserError
from tests.faults.test_training import Said, go
from trainer import children, merge
from trainer.config import TrainConfig

in_its_own_process = children.bound  # before the tests' quick one takes its place
Bound = Callable[[list[str]], list[str]]
ROOM_BYTES = 300 << 20  # of address space: the converter's imports alone need more


def at_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where a product does not fit, which the card of a test machine may be too large for."""
    whole, asked = merge._merged, iter(range(1000))

    def runs_out_once(*arguments: Any) -> Any:
        if next(asked) == 0:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(*arguments)

    monkeypatch.setattr(merge, "_merged", runs_out_once)
    monkeypatch.setattr(merge, "PIECE_PARAMETERS", 20_000)


def cramped(bound: Bound, unless: str = "nothing") -> Bound:
    """The converter in too small an address space, unless it is told so."""

    def chosen(argv: list[str]) -> list[str]:
        if "--outtype" in argv and unless not in argv:
            return in_its_own_process(["prlimit", f"--as={ROOM_BYTES}", *argv])
        return bound(argv)

    return chosen


def at_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real converter in too small an address space, until it is told to keep tensors on the disk."""

    monkeypatch.setattr(children, "bound", cramped(children.bound, unless="--use-temp-file"))


def at_the_quantization(monkeypatch: pytest.MonkeyPatch, file: str = "tuned-Q8_0.gguf") -> None:
    """The file's first quantizer is killed without a word, as the kernel does it."""
    killed, bound = list[str](), children.bound

    def killed_once(argv: list[str]) -> list[str]:
        if "Q8_0" in argv and any(part.endswith(file) for part in argv) and not killed:
            killed.append(file)
            return ["sh", "-c", "kill -9 $$"]
        return bound(argv)

    monkeypatch.setattr(children, "bound", killed_once)


@pytest.mark.fault(
    what="memory runs out at the merge, the conversion, the quantization",
    how="torch's error; the converter in an address space that is too small; kill -9 of the quantizer",
    lost="nothing: the export is done once more in less memory, and the run is published",
)
@pytest.mark.parametrize("provoked", [at_the_merge, at_the_conversion, at_the_quantization])
def test_an_export_without_memory_is_done_once_more_sparing_it(
    wish: TrainConfig, tmp_path: Path, provoked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    undisturbed = go(wish, tmp_path / "undisturbed").run
    provoked(monkeypatch)
    said = Said()
    run = go(wish, tmp_path / "cut", said).run
    assert sum(line.startswith("out of memory at the export") for line in said.lines) == 1, said.lines
    Store(tmp_path / "cut").check(run)
    files = [each.artifact("gguf", "Q8_0").path for each in (run, undisturbed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    pieces = list(run.folder("merged").glob("*.safetensors"))
    assert len(pieces) == (4 if provoked is at_the_merge else 1)
    mine, theirs = (AutoModelForCausalLM.from_pretrained(each.folder("merged")) for each in (run, undisturbed))
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in mine.state_dict().items())


def test_the_base_s_files_are_made_once_more_too(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are made while the model trains, whichever of the two is quantized first."""
    monkeypatch.setattr("trainer.export.SPARE_THREADS", 1)
    at_the_quantization(monkeypatch, "base-Q8_0.gguf")
    said = Said()
    store, run = Store(tmp_path), go(wish, tmp_path, said).run
    (again,) = (line for line in said.lines if line.startswith("out of memory at the export"))
    assert "base-Q8_0.gguf could not be made" in again
    store.check(store.base(run.manifest.base["id"]))
    store.check(run)


def test_a_proof_that_fails_ends_what_is_made_beside_it(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converters of the run and of the base would take a minute."""
    monkeypatch.setattr("trainer.export.SPARE_THREADS", 1)
    monkeypatch.setattr(children, "bound", lambda argv: ["sleep", "60"] if "--outtype" in argv else argv)

    failed = list[float]()

    def fails(*_: Any) -> None:
        while len(children._running) < 2:
            time.sleep(0.02)
        failed.append(time.monotonic())
        raise ValueError("no proof")

    monkeypatch.setattr("trainer.pipeline.verify_merged", fails)
    with pytest.raises(ValueError, match="no proof"):
        go(wish, tmp_path)
    assert time.monotonic() - failed[0] < 30 and not children._running
    assert Store(tmp_path).runs() == []


def test_a_check_that_breaks_ends_the_engine_beside_it(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would take a minute."""
    bound = children.bound
    monkeypatch.setattr(
        children, "bound", lambda argv: ["sleep", "60"] if "trainer.gguf_probe" in argv else bound(argv)
    )
    broken = list[float]()

    def breaks(*_: Any) -> None:
        while not children._running:
            time.sleep(0.02)
        broken.append(time.monotonic())
        raise ZeroDivisionError

    monkeypatch.setattr("trainer.verify._holds_weights", breaks)
    with pytest.raises(ZeroDivisionError):
        go(wish, tmp_path)
    assert time.monotonic() - broken[0] < 30 and not children._running
    assert Store(tmp_path).runs() == []


def test_an_export_that_never_fits_says_so_and_the_next_start_exports(
    wish: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(children, "bound", cramped(children.bound))
        with pytest.raises(UserError, match=r"(?s)Memory ran out at the export, also with .*the training is kept"):
            go(wish, tmp_path)
    assert Store(tmp_path).runs() == []
    again = Said()
    Store(tmp_path).check(go(wish, tmp_path, again).run)
    assert any(line.startswith("continues run") for line in again.lines)
