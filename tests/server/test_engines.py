"""Commands as values, and the choices that the machine makes for the operator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modelstore import ArtifactSpec, Store, UserError
from modelstore.machine import cpu_threads
from server import choose, vllm
from server.choose import (
    CPU_SLOTS,
    ENGINES,
    GPU_SLOTS,
    PAGED_SLOTS,
    Asked,
    choose_engine,
    choose_layers,
    choose_slots,
    choose_weights,
)
from server.engine import EngineOptions
from server.llamacpp import LlamaCpp, llamacpp_argv, llamacpp_gpu
from server.memory import kv_bytes
from server.plan import Wish, plan_serving
from server.purpose import Figures, Measured, Purpose, best, measured
from server.vllm import Vllm, cache_argv, vllm_argv, vllm_environment, vllm_program

RUN_ID, BASE_ID = "20260101-0000-a", "base-1"
CONFIG = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
OPTIONS = EngineOptions(slots=4, context_tokens=1024, threads=3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Every kind of weights; none of them real."""
    store = Store(tmp_path / "models")
    store.create()
    with store.stage_base(BASE_ID) as staging:
        fill(staging.path / "hf", staging.path / "b-Q8_0.gguf")
        specs = [ArtifactSpec("hf", "hf"), ArtifactSpec("gguf", "b-Q8_0.gguf", "Q8_0")]
        staging.publish({"base": {"id": BASE_ID}}, specs)
    with store.stage(RUN_ID) as staging:
        fill(staging.path / "merged", staging.path / "r-Q8_0.gguf")
        (staging.path / "adapter").mkdir()
        (staging.path / "adapter/adapter_config.json").write_text('{"r": 12}')
        specs = [ArtifactSpec(kind, kind) for kind in ("merged", "adapter")]
        specs.append(ArtifactSpec("gguf", "r-Q8_0.gguf", "Q8_0"))
        staging.publish({"base": {"id": BASE_ID}, "serve": {"quantization": "Q8_0"}}, specs)
    store.promote(RUN_ID)
    return store


def fill(folder: Path, gguf: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    gguf.write_bytes(b"weights")


def test_golden_argv_of_llamacpp() -> None:
    argv = llamacpp_argv(["llama-server"], Path("/store/m.gguf"), "my-run", 9000, OPTIONS)
    assert " ".join(argv) == (
        "llama-server -m /store/m.gguf --alias my-run --host 127.0.0.1 --port 9000 -c 4096 -np 4 -t 3 -tb 3 -ngl 0 "
        "--cache-ram 0 --threads-http 160 -lv 1 --metrics --no-ui"
    )


def test_vllm_computes_in_fp32_where_bf16_would_be_emulated() -> None:
    argv = vllm_argv(["vllm"], Path("/m"), "my-run", 9000, replace(OPTIONS, native_bf16=False), None)
    assert argv[-2:] == ["--dtype", "float32"]


def test_requests_wait_in_llamacpp_for_as_many_as_four_to_a_slot() -> None:
    argv = llamacpp_argv(["llama-server"], Path("/store/m.gguf"), "my-run", 9000, replace(OPTIONS, slots=64))
    assert argv[argv.index("--threads-http") + 1] == str(4 * 64 + 16)


def test_golden_argv_of_vllm_on_a_cpu() -> None:
    argv = vllm_argv(["vllm"], Path("/store/merged"), "my-run", 9000, OPTIONS, None)
    assert " ".join(argv) == (
        "vllm --model /store/merged --served-model-name my-run --host 127.0.0.1 --port 9000 --max-model-len 1024 "
        "--max-num-seqs 4 --generation-config vllm --shutdown-timeout 10 --disable-uvicorn-access-log --enforce-eager"
    )
    settings = vllm_environment("k", OPTIONS)
    assert settings["VLLM_API_KEY"] == "k"
    assert settings["HF_HUB_OFFLINE"] == "1"
    assert settings["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert (settings["VLLM_CPU_KVCACHE_SPACE"], settings["OMP_NUM_THREADS"]) == ("1", "3")


def test_vllms_threads_spin_briefly_on_a_cpu_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert vllm_environment("k", OPTIONS)["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "300000")
    assert vllm_environment("k", OPTIONS)["GOMP_SPINCOUNT"] == "300000"


def test_golden_argv_of_vllm_on_a_gpu_with_tools(tmp_path: Path) -> None:
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% if tools %}<tool_call>{% endif %}")
    options = EngineOptions(slots=64, context_tokens=4096, gpu_share=0.3)
    argv = vllm_argv(["vllm"], Path("/store/merged"), "my-run", 9000, options, template)
    assert " ".join(argv) == (
        "vllm --model /store/merged --served-model-name my-run --host 127.0.0.1 --port 9000 --max-model-len 4096 "
        "--max-num-seqs 64 --generation-config vllm --shutdown-timeout 10 --disable-uvicorn-access-log "
        f"--gpu-memory-utilization 0.30 --chat-template {template} --enable-auto-tool-choice --tool-call-parser hermes"
    )
    assert not {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"} & vllm_environment("k", options).keys()


def test_processes_that_share_a_gpu_are_told_the_size_of_their_caches(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes(1 << 20))
    card = EngineOptions(gpu_share=0.45, gpu_bytes=24 << 30)
    name, size = cache_argv(tmp_path, card)
    assert name == "--kv-cache-memory-bytes"
    assert int(size) == int((24 << 30) * 0.43) - (2 << 20) - (3 << 29)
    assert cache_argv(tmp_path, replace(card, gpu_bytes=2 << 30)) == []  # vLLM says what is missing
    assert cache_argv(tmp_path, EngineOptions()) == []


def test_merged_weights_are_two_processes_and_an_adapter_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESHIP_VLLM_PYTHON", "/opt/vllm/bin/python")
    merged = plan_serving(store, "current", Wish(Vllm(), OPTIONS))
    assert [engine.title for engine in merged.engines] == ["tuned", "base"]
    assert [Path(engine.argv[3]).name for engine in merged.engines] == ["merged", "hf"]
    (shared,) = plan_serving(store, "current", Wish(Vllm(), OPTIONS, "adapter")).engines
    assert shared.title == "tuned+base"
    assert shared.argv[:3] == ["/opt/vllm/bin/python", str(Path(vllm.__file__).with_name("vllm_start.py")), "--model"]
    said = " ".join(shared.argv)
    assert said.endswith("--enable-lora --max-loras 2 --max-lora-rank 16")
    assert shared.models[0].adapter == store.run("current").path / "adapter"


@pytest.fixture
def _has_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setenv("TUNESHIP_VLLM_PYTHON", str(python))


@pytest.mark.usefixtures("_has_plugin")
def test_gguf_files_are_read_with_config_and_tokenizer_beside_them(store: Store) -> None:
    tuned, base = plan_serving(store, "current", Wish(Vllm(), OPTIONS, "gguf")).engines
    assert [Path(engine.argv[3]).name for engine in (tuned, base)] == ["r-Q8_0.gguf", "b-Q8_0.gguf"]
    merged = str(store.run("current").path / "merged")
    assert tuned.argv[-4:] == ["--tokenizer", merged, "--hf-config-path", merged]
    assert f"--chat-template {merged}/chat_template.jinja" in " ".join(tuned.argv)
    assert tuned.environment["VLLM_PLUGINS"] == "gguf"


@pytest.mark.usefixtures("_has_plugin")
def test_ggufs_reader_hears_of_mistrals_layout_what_the_converter_writes(store: Store) -> None:
    config = store.base(BASE_ID).path / "hf/config.json"
    config.write_text(json.dumps({**CONFIG, "model_type": "mistral"}))
    tuned, base = plan_serving(store, "current", Wish(Vllm(), OPTIONS, "gguf")).engines
    assert "--hf-overrides" not in tuned.argv
    assert json.loads(base.argv[base.argv.index("--hf-overrides") + 1])["model_type"] == "llama"


def test_what_vllm_compiles_is_kept_in_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "vllm_python", lambda: "python")
    monkeypatch.setenv("TUNESHIP_VLLM_PYTHON", "python")
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    wish = choose.choose(Asked(engine="vllm"), store, "current", follows=False)[0]
    (tuned, _) = plan_serving(store, "current", wish).engines
    assert tuned.environment["VLLM_CACHE_ROOT"] == str(store.cache / "vllm")
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/elsewhere")
    (tuned, _) = plan_serving(store, "current", wish).engines
    assert "VLLM_CACHE_ROOT" not in tuned.environment


def test_the_same_process_is_recognized_whatever_its_port(store: Store) -> None:
    first, second = (plan_serving(store, "current", Wish(LlamaCpp(), OPTIONS)).engines for _ in range(2))
    assert first[1].port != second[1].port
    assert first[1].identity == second[1].identity
    assert first[0].identity != first[1].identity


def test_the_limit_for_a_start_grows_with_the_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESHIP_VLLM_PYTHON", "/opt/vllm/bin/python")
    limits = [plan_serving(store, "current", Wish(e, OPTIONS)).engines[0].start_limit_s for e in ENGINES.values()]
    assert 60 <= limits[0] < 61
    assert 420 <= limits[1] < 421


@pytest.mark.parametrize(
    ("engine", "wish", "advice"),
    [
        ("llamacpp", {"weights": "merged"}, "--engine vllm"),
        ("llamacpp", {"weights": "adapter"}, "answers wrongly"),
        ("vllm", {"weights": "gguf"}, "vllm-gguf-plugin==0.0.5"),
        ("vllm", {"quantization": "Q8_0"}, "GGUF"),
        ("llamacpp", {"quantization": "Q2_K"}, "Q8_0"),
    ],
)
def test_weights_that_an_engine_does_not_serve_are_explained(
    store: Store, engine: str, wish: dict[str, str], advice: str
) -> None:
    with pytest.raises(UserError, match=advice):
        plan_serving(store, "current", Wish(ENGINES[engine], OPTIONS, **wish))  # type: ignore[arg-type]


def test_another_template_beside_the_weights_is_refused(store: Store) -> None:
    path = store.run("current").path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template_sha256": "0" * 64}))
    with pytest.raises(UserError, match="another chat template"):
        plan_serving(store, "current", Wish(Vllm(), OPTIONS))


def test_without_vllm_the_user_hears_how_to_get_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.vllm.vllm_python", lambda: None)
    with pytest.raises(UserError, match=r"tools/envs\.py vllm"):
        vllm_program()


@pytest.mark.parametrize(
    ("asked", "gpu", "vllm", "name", "reason"),
    [
        (Asked(), 0, "python", "llamacpp", "no NVIDIA GPU"),
        (Asked(), 80 << 30, None, "llamacpp", "not installed"),
        (Asked(), 80 << 30, "python", "vllm", "NVIDIA GPU and vLLM"),
        (Asked(quantization="Q8_0"), 80 << 30, "python", "llamacpp", "GGUF"),
        (Asked(gpu_layers=9), 80 << 30, "python", "llamacpp", "layers"),
        (Asked(weights="adapter"), 0, "python", "vllm", "adapter"),
        (Asked(engine="vllm"), 0, None, "vllm", "asked for"),
    ],
)
def test_the_engine_is_chosen_by_machine_and_artifacts(
    store: Store, monkeypatch: pytest.MonkeyPatch, asked: Asked, gpu: int, vllm: str | None, name: str, reason: str
) -> None:
    monkeypatch.setattr(choose, "gpu_memory_bytes", lambda: gpu)
    monkeypatch.setattr(choose, "vllm_python", lambda: vllm)
    engine, why = choose_engine(asked, store.run("current"))
    assert engine.name == name
    assert reason in why


def test_slots_fit_the_memory(store: Store) -> None:
    a_token = kv_bytes(store.run("current"), store)
    assert a_token == 2 * 2 * 30 * 3 * 64
    assert choose_slots(Asked(), CPU_SLOTS, a_token, 8 << 30)[0] == 8
    assert choose_slots(Asked(), GPU_SLOTS, a_token, 80 << 30)[0] == 64
    assert choose_slots(Asked(), PAGED_SLOTS, 0, 1 << 30)[0] == 256
    few, why = choose_slots(Asked(), GPU_SLOTS, a_token, 1 << 30)
    assert few == (1 << 29) // (2048 * a_token)
    assert "would not fit" in why
    assert choose_slots(Asked(slots=5), GPU_SLOTS, a_token, 1) == (5, "it was asked for")
    assert choose_slots(Asked(), CPU_SLOTS, 0, 0)[0] == 8  # a run without a config
    alone = Asked(purpose=Purpose("latency", 1))
    assert choose_slots(alone, GPU_SLOTS, a_token, 80 << 30) == (1, "so many streams are to be served")
    assert choose_slots(Asked(purpose=Purpose("throughput", 64)), CPU_SLOTS, a_token, 8 << 30)[0] == 8


def test_vllm_shares_the_gpu_with_the_engine_of_the_next_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "gpu_memory_bytes", lambda: 80 << 30)
    monkeypatch.setattr(choose, "vllm_python", lambda: "python")
    shares = [choose.choose(Asked(), store, "current", follows)[0].options.gpu_share for follows in (True, False)]
    assert shares == [pytest.approx(0.3), pytest.approx(0.45)]


def test_an_adapter_is_taken_where_merged_weights_would_not_fit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.run("current")
    merged = sum(artifact.bytes for artifact in run.manifest.artifacts if artifact.kind == "merged")
    assert choose_weights(None, Vllm(), run, 5 * merged, 3) == (None, "")
    weights, why = choose_weights(None, Vllm(), run, 4 * merged, 3)
    assert weights == "adapter"
    assert "3 processes" in why
    assert choose_weights("merged", Vllm(), run, 4 * merged, 3) == ("merged", "")
    assert choose_weights(None, LlamaCpp(), run, merged, 3) == (None, "")
    monkeypatch.setattr(choose, "gpu_memory_bytes", lambda: 4 * merged)
    monkeypatch.setattr(choose, "vllm_python", lambda: "python")
    wish, said = choose.choose(Asked(), store, "current", follows=True)
    assert (wish.weights, wish.options.gpu_share) == ("adapter", 0.9)
    assert any(line.startswith("weights: adapter, because") for line in said)


def test_a_llama_server_with_cuda_gets_all_layers_and_one_thread(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "llama-server"
    program.write_text(
        "#!/bin/sh\necho 'Available devices:'\necho '  CUDA0: NVIDIA H100 (81000 MiB, 80000 MiB free)'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("TUNESHIP_LLAMA_SERVER", str(program))
    assert choose_layers(None) == (999, "llama-server was built for CUDA0: NVIDIA H100 (81000 MiB, 80000 MiB free)")
    assert choose_layers(7) == (7, "")
    wish, said = choose.choose(Asked("llamacpp"), store, "current", follows=True)
    assert (wish.options.gpu_layers, wish.options.threads) == (999, 1)
    assert "threads: 1, because all layers are on the GPU" in said
    for layers in (7, 999):  # with a number it may be an engine without a GPU
        told = choose.choose(Asked("llamacpp", gpu_layers=layers), store, "current", follows=True)[0]
        assert told.options.threads == cpu_threads()
    asked = choose.choose(Asked("llamacpp", threads=3), store, "current", follows=True)[0]
    assert asked.options.threads == 3
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\necho 'Available devices:'\n")
    plain.chmod(0o755)
    assert llamacpp_gpu(str(plain)) == ""
    assert llamacpp_gpu(str(tmp_path / "missing")) == ""


ROWS = [  # engine, weights, quantization, streams, tokens/s, ms to the first token, ms between two
    ("llamacpp", "gguf", "Q8_0", 1, 100, 50, 10),
    ("llamacpp", "gguf", "Q4_K_M", 1, 103, 50, 9.8),
    ("vllm", "merged", None, 1, 80, 20, 12),
    ("vllm", "adapter", None, 1, 60, 20, 17),
    ("llamacpp", "gguf", "Q8_0", 64, 900, 4000, 30),
    ("vllm", "merged", None, 64, 3000, 200, 15),
    ("vllm", "gguf", "Q8_0", 64, 9000, 20, 5),
]


@pytest.mark.parametrize(
    ("asked", "gpu", "vllm", "engine", "weights", "quantization", "slots"),
    [
        (Asked(purpose=Purpose("latency", 1)), 80 << 30, "python", "llamacpp", "gguf", "Q8_0", 1),
        (Asked(purpose=Purpose("throughput", 64)), 80 << 30, "python", "vllm", "merged", None, 64),
        (Asked(purpose=Purpose("throughput", 200)), 80 << 30, "python", "vllm", "merged", None, 200),
        (Asked(purpose=Purpose("throughput", 64)), 80 << 30, None, "llamacpp", "gguf", "Q8_0", 64),
        (Asked(purpose=Purpose("latency", 5), weights="adapter"), 80 << 30, "python", "vllm", "adapter", None, 5),
        (Asked(purpose=Purpose("throughput", 64), slots=3), 80 << 30, "python", "vllm", "merged", None, 3),
        # nothing was measured of what is asked for: the defaults
        (Asked(purpose=Purpose("latency", 1), quantization="Q6_K"), 80 << 30, None, "llamacpp", None, "Q6_K", 1),
    ],
)
def test_a_purpose_chooses_what_was_measured_to_be_best(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    asked: Asked,
    gpu: int,
    vllm: str | None,
    engine: str,
    weights: str | None,
    quantization: str | None,
    slots: int,
) -> None:
    found = Measured("one GPU", "a-model", tuple(Figures(*row) for row in ROWS))
    monkeypatch.setattr(choose, "measured", lambda kind: found)
    monkeypatch.setattr(choose, "gpu_memory_bytes", lambda: gpu)
    monkeypatch.setattr(choose, "vllm_python", lambda: vllm)
    monkeypatch.setattr(choose, "choose_layers", lambda asked: (999, "it has a GPU"))
    wish, said = choose.choose(asked, store, "current", follows=True)
    assert (wish.engine.name, wish.weights, wish.quantization) == (engine, weights, quantization)
    assert wish.options.slots == slots
    assert said[0].startswith(f"for {asked.purpose.goal} with" if asked.purpose else "")


def test_fewer_bits_have_to_be_clearly_faster() -> None:
    exact, short = (Figures(*row) for row in ROWS[:2])
    assert best(Purpose("latency", 1), [exact, short]) is exact
    assert best(Purpose("latency", 1), [exact, replace(short, itl_ms=9)]).quantization == "Q4_K_M"  # type: ignore[union-attr]
    assert best(Purpose("latency", 1), []) is None


def test_every_measured_row_is_one_that_the_server_knows() -> None:
    for kind in ("cpu", "gpu"):
        found = measured(kind)
        for row in found.figures if found else ():
            assert row.weights in ENGINES[row.engine].weights
            assert row.tokens_per_s > 0
            assert row.answer_s > 0
