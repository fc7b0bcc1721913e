"""Builds that compose does not make by itself here: vLLM's image, and builds behind mirrors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compose import ROOT, Project, docker


def test_the_gateway_starts_beside_vllm(images: None, variables: dict[str, str]) -> None:
    """On a plain Python instead of vLLM's image: every layer of ours builds, and the entry point starts."""
    base = f"VLLM_IMAGE={variables['PYTHON_IMAGE']}"
    wish = ["--quiet", "--build-arg", base, "--tag", "tuneship-test/server-vllm:plain"]
    docker("build", *wish, "-f", str(ROOT / "docker/server-vllm.Dockerfile"), str(ROOT), timeout_s=300)
    said = docker(
        "run", "--rm", "--read-only", "--user", "10001:10001", "tuneship-test/server-vllm:plain", "serve", "--help"
    )
    assert "--engine" in said
    engines = [
        "--entrypoint",
        "/opt/vllm-python",
        "tuneship-test/server-vllm:plain",
        "-c",
        "import sys; print(sys.pycache_prefix)",
    ]
    assert docker("run", "--rm", "--read-only", "--user", "10001:10001", *engines).strip() == "/app/cache/bytecode"


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
    images: None,
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


def test_the_bill_of_materials_of_an_image_is_its_lock(images: None, tmp_path: Path) -> None:
    """Every package of the lock in its version and nothing else from an index; Debian's packages too."""
    for name, locks in {
        "clients": ["clients"],
        "server-llamacpp": ["server"],
        "trainer": ["trainer", "converter", "embedded"],
    }.items():
        image = f"tuneship/{name}:test-cpu"
        subprocess.run([sys.executable, str(ROOT / "tools/sbom.py"), image, "--to", str(tmp_path)], check=True)
        (file,) = tmp_path.glob(f"*{name}*.cdx.json")
        purls = [each["purl"].partition("?")[0] for each in json.loads(file.read_text())["components"]]
        text = " ".join((ROOT / "requirements" / f"{lock}.lock").read_text() for lock in locks)
        locked = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() + "@" + pin.split("==")[1] for pin in text.split()}
        found = {purl.removeprefix("pkg:pypi/").replace("%2Bcpu", "") for purl in purls if purl.startswith("pkg:pypi/")}
        assert found == locked, name
        assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)
