"""The load generator against an engine of known timing."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from clients.bench import BenchWish, run_bench
from clients.bench_figures import Slo, percentile, row, table
from clients.bench_file import newest_bench
from clients.cli import main
from clients.endpoint import Endpoint
from clients.engine_facts import memory_bytes, named_by, slots_of_metrics, slots_of_props
from clients.load import Load, Timing
from modelstore import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    with running("--ttft-ms", "60", "--itl-ms", "10") as url:
        yield url


@contextmanager
def running(*options: str) -> Iterator[str]:
    argv = [sys.executable, str(ROOT / "benchmarks" / "stub_engine.py"), *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        process.kill()


def test_closed_and_open_loops_measure_what_the_engine_does(stub: str) -> None:
    wish = BenchWish(Load("stub", 40, 10), (1, 4), (20.0,), requests=8, slo=Slo(ttft_ms=1000, tpot_ms=0.001))
    one, four, rate = asyncio.run(run_bench(Endpoint(stub), wish))
    for found in (one, four, rate):
        assert (found["completed"], found["failed"], found["errors"]) == (8, 0, {})
        assert 45 < found["ttft_ms_p50"] < 300 and 9 < found["itl_ms_mean"] < 15 and 9 < found["tpot_ms_p50"] < 15
        assert found["prompt_tokens_mean"] == pytest.approx(40, abs=2) and found["output_tokens_mean"] == 10
        assert found["goodput_requests_per_s"] == 0 and found["good_share"] == 0 and found["memory"] is None
    assert four["output_tokens_per_s"] > 2 * one["output_tokens_per_s"]
    assert "20/s" in table([one, four, rate])


def test_tokens_without_text_are_no_failure() -> None:
    """Half a character, or a control token: there is nothing to see before the end, and nothing wrong."""
    with running("--text", "", "--ttft-ms", "5", "--itl-ms", "5") as url:
        (found,) = asyncio.run(run_bench(Endpoint(url), BenchWish(Load("stub", 20, 4), (2,), requests=4)))
    assert (found["completed"], found["errors"], found["output_tokens_mean"]) == (4, {}, 4)
    assert found["ttft_ms_p50"] == pytest.approx(1000 * found["e2e_s_p50"], rel=0.1) and found["tpot_ms_p50"] is None


def test_an_unknown_model_is_said_at_once(stub: str) -> None:
    with pytest.raises(UserError, match="has no model 'tuned'"):
        asyncio.run(run_bench(Endpoint(stub), BenchWish(Load("tuned"))))


def test_no_prompt_of_a_load_occurs_in_the_next_one() -> None:
    from clients.load import Prompts

    loads = [Prompts(random.Random(1), 40) for _ in range(2)]
    prompts = [load.next() for load in loads for _ in range(50)]
    assert len({prompt[:12] for prompt in prompts}) == 100  # so that no cache finds a common beginning
    assert len({len(prompt.split()) for prompt in prompts}) == 1


def test_failures_are_counted_by_kind_and_no_figure_comes_from_nothing(endpoint: Endpoint) -> None:
    from clients.bench import _closed
    from clients.load import Prompts

    class Broken(Prompts):
        def next(self) -> str:
            return "400"

    async def run() -> dict[str, object]:
        async with endpoint.client() as client:
            prompts = Broken(None, 1)  # type: ignore[arg-type]
            outcome = await _closed(client, BenchWish(Load("tuned"), requests=3), prompts, 2)
        return row(outcome.timings, outcome.errors, outcome.seconds, Slo(ttft_ms=5))

    found = asyncio.run(run())
    assert found["errors"] == {"BadRequestError": 3} and found["completed"] == 0
    assert found["output_tokens_per_s"] is None and found["ttft_ms_p50"] is None and found["good_share"] is None


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    quick, slow = Timing(0, (0.1, 0.2), 0.2, 5, 2), Timing(0, (0.1, 0.9), 0.9, 5, 2)
    found = row([quick, slow], {"Timeout": 2}, 2.0, Slo(ttft_ms=150, tpot_ms=150))
    assert (found["goodput_requests_per_s"], found["good_share"]) == (0.5, 0.25)
    assert found["itl_ms_p50"] == 100 and found["e2e_s_p99"] == 0.9


def test_percentiles_are_nearest_rank() -> None:
    assert [percentile([4, 1, 3, 2], share) for share in (50, 90, 99)] == [2, 4, 4]
    assert percentile([], 50) is None


def test_memory_is_read_from_the_servers_metrics() -> None:
    text = (
        'x_resident_memory_bytes{model="tuned"} 5e6\nx_resident_memory_bytes{model="base"} 7e6\n'
        "process_resident_memory_bytes 1e6\nother 3\n"
    )
    assert memory_bytes(text, "tuned") == 6e6
    assert memory_bytes("other 3\n", "tuned") is None


def test_the_engine_is_told_by_its_metrics() -> None:
    assert named_by('x 1\nvllm:num_requests_running{model="m"} 0\n') == "vLLM"
    assert named_by("llamacpp:requests_processing 0\n") == "llama.cpp" and named_by("x 1\n") is None


def test_the_slots_are_read_from_what_the_server_says() -> None:
    assert slots_of_metrics('tuneship_slots{model="tuned",run="r"} 8\ntuneship_slots{model="base",run="b"} 4\n') == 4
    assert slots_of_metrics("other 3\n") is None
    assert slots_of_props('{"total_slots": 6}') == 6
    assert slots_of_props('{"total_slots": "x"}') is None and slots_of_props("[]") is None


def test_the_command_writes_its_file(stub: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bench.json"
    argv = ["bench", "--url", stub, "--model", "stub", "--streams", "2", "--requests", "2", "--prompt-tokens", "20"]
    done = CliRunner().invoke(main, [*argv, "--output-tokens", "3", "--slo", "ttft=500", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert re.search(r"c=2 +2 +0", done.output)
    made = json.loads(out.read_text())
    assert made["load"]["output_tokens"] == 3 and made["slo"]["ttft_ms"] == 500 and len(made["rows"]) == 1
    assert newest_bench(tmp_path, "none") is None


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--streams", "0", "whole numbers"),
        ("--streams", "1001", "to 1000"),
        ("--rate", "x", "above 0"),
        ("--slo", "ttft", "ttft=MS"),
        ("--slo", "a=1", ""),
    ],
)
def test_mistakes_in_options_are_explained(option: str, value: str, part: str) -> None:
    done = CliRunner().invoke(main, ["bench", option, value])
    assert isinstance(done.exception, UserError) and part in str(done.exception) and option in str(done.exception)
