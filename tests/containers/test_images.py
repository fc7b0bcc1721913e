"""Builds that compose does not make by itself here: vLLM's image, and builds behind mirrors."""

from __future__ import annotations

from pathlib import Path

import pytest
from compose import ROOT, Project, docker


def test_the_gateway_starts_beside_vllm(images: dict[str, float], variables: dict[str, str]) -> None:
    """On a plain Python instead of vLLM's image: every layer of ours builds, and the entry point starts."""
    base = f"VLLM_IMAGE={variables['PYTHON_IMAGE']}"
    wish = ["--quiet", "--build-arg", base, "--tag", "tuneship-test/server-vllm:plain"]
    docker("build", *wish, "-f", str(ROOT / "docker/server-vllm.Dockerfile"), str(ROOT), timeout_s=300)
    said = docker(
        "run", "--rm", "--read-only", "--user", "10001:10001", "tuneship-test/server-vllm:plain", "serve", "--help"
    )
    assert "--engine" in said


@pytest.mark.parametrize(
    ("variable", "content", "service", "complaint"),
    [
        ("TUNESHIP_PIP_CONF", "[global]\nno-index = true\n", "eval", "No matching distribution"),
        (
            "TUNESHIP_APT_SOURCES",
            "deb http://mirror.invalid/debian bookworm main\n",
            "server-llamacpp",
            "mirror.invalid",
        ),
    ],
)
def test_a_build_asks_the_mirror_that_its_secret_names(
    images: dict[str, float],
    variables: dict[str, str],
    tmp_path: Path,
    variable: str,
    content: str,
    service: str,
    complaint: str,
) -> None:
    """A mirror that has nothing: the build has to fail there, so it did not ask elsewhere."""
    (tmp_path / "secret").write_text(content)
    kit = Project("tuneship-mirror", {**variables, variable: str(tmp_path / "secret"), "TUNESHIP_TAG": "mirror"})
    done = kit.compose("--profile", "*", "build", "--no-cache", service)
    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr
