"""What can drift between compose files, Dockerfiles and their explanations; no engine is needed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPOSE = sorted(ROOT.glob("compose*.yaml"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def text(paths: list[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def test_env_example_explains_every_variable_with_its_default_and_no_other() -> None:
    said = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    used = dict(re.findall(r"\$\{([A-Z_]+)(?::-([^}]*))?", text(COMPOSE)))
    handed_on = re.findall(r"([A-Z_]+): null", text(COMPOSE))
    assert set(said) == {*used, *handed_on}
    of_cpu = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", (ROOT / "compose.yaml").read_text()))
    of_cpu = {name: value for name, value in of_cpu.items() if not name.endswith("_IMAGE")}  # said where they are used
    for name in ("TUNESHIP_SERVER_MEMORY", "TUNESHIP_KEYS_FILE", "TUNESHIP_ALLOWED_SIGNERS"):
        del of_cpu[name]  # vLLM needs more; empty means none
    assert {name: said[name] for name in of_cpu} == of_cpu


def test_every_base_image_is_pinned_by_digest_and_can_be_replaced() -> None:
    for path in DOCKERFILES:
        dockerfile = path.read_text()
        stages = set(re.findall(r"^FROM .* AS (\S+)$", dockerfile, re.MULTILINE))
        bases = set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) - stages - {"scratch"}
        assert bases, path
        for base in bases:
            (name,) = re.fullmatch(r"\$\{(\w+)\}", base).groups()  # type: ignore[union-attr]
            assert re.search(rf"^ARG {name}=\S+:\S+@sha256:[0-9a-f]{{64}}$", dockerfile, re.MULTILINE), (path, name)


def test_dockerfiles_name_no_registry_and_no_mirror() -> None:
    assert not re.search(r"https?://|[a-z0-9-]+\.(io|com|org|cn)/", text(DOCKERFILES))


def test_every_image_runs_as_the_same_user_and_has_the_same_mount_point() -> None:
    for path in DOCKERFILES:
        dockerfile = path.read_text()
        assert set(re.findall(r"^ARG UID=(\d+)$", dockerfile, re.MULTILINE)) == {"10001"}, path
        assert dockerfile.rstrip().count("USER ${UID}:${GID}") >= 1, path
        assert re.search(r'install -d -o "\$UID" -g "\$GID" /app/models', dockerfile), path


def stage(name: str, dockerfile: str) -> str:
    """From a FROM to the next one, without what stands above it."""
    found = re.search(rf"^FROM \S+ AS {name}$.*?(?=^# -+ |^FROM )", dockerfile, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[0]


def test_the_cuda_images_have_one_llama_cpp_from_one_source() -> None:
    """Converters, quantizer, imatrix and engines are built by one stage, whose source is locked by its hash."""
    trainer, server = ((ROOT / f"docker/{name}.Dockerfile").read_text() for name in ("trainer", "server-llamacpp"))
    assert stage("llamacpp", trainer) == stage("llamacpp", server)
    bases = [re.findall(r"^ARG CUDA_IMAGE=.*$", text, re.MULTILINE) for text in (trainer, server)]
    assert bases[0] == bases[1] and len(bases[0]) == 1
    assert "--require-hashes -r /requirements/hashed/llamacpp-source.txt" in stage("llamacpp", trainer)
    for made in ("llama-server", "llama-quantize", "llama-imatrix", "convert_hf_to_gguf.py"):
        assert re.search(rf"[ /]{made} .*/opt/llamacpp/", re.sub(r"\\\n\s*", " ", stage("llamacpp", trainer))), made
    assert "TUNESHIP_LLAMACPP=/opt/llamacpp" in trainer and "converter.txt" not in stage("dependencies-cuda", trainer)
    assert "TUNESHIP_LLAMA_SERVER=/opt/llamacpp/llama-server" in server


def test_bytecode_of_vllm_is_kept_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "imported.py").touch()
    told = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tmp_path / "source"), "XDG_CACHE_HOME": str(tmp_path)}
    argv = [str(ROOT / "docker/install/vllm-python"), "-c", "import imported"]
    subprocess.run(argv, env={**os.environ, **told}, check=True)
    assert list((tmp_path / "bytecode").rglob("imported.*.pyc")) and not list((tmp_path / "source").rglob("*.pyc"))


def test_the_trainer_verifies_in_the_engine_that_serves() -> None:
    locks = [(ROOT / "requirements" / f"{name}.lock").read_text() for name in ("trainer", "trainer-cuda", "server")]
    assert len({found for lock in locks for found in re.findall(r"^xllamacpp==.*$", lock, re.MULTILINE)}) == 1


def test_the_proxy_configuration_is_what_its_tool_writes() -> None:
    written = subprocess.check_output([ROOT / "tools/balancer.py", "--tls", "server:8000"], text=True)
    assert (ROOT / "docker" / "haproxy.cfg").read_text() == written


@pytest.mark.parametrize("server", ["gpu1:x", "a b", "gpu1;rm", ""])
def test_the_balancer_refuses_what_is_no_host(server: str) -> None:
    done = subprocess.run([ROOT / "tools/balancer.py", server], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is no HOST" in done.stderr and not done.stdout


def test_the_table_of_images_is_what_the_results_say() -> None:
    subprocess.run([ROOT / "tools/container_page.py", "--check"], check=True)
