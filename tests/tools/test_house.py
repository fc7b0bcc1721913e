"""Rules of the house that can drift: dependency direction, README twins, make targets, locks without hosts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("trainer", "server", "clients")


def imports(package: str) -> dict[Path, set[str]]:
    found: dict[Path, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        found[path] = names
    return found


@pytest.mark.parametrize("package", PROGRAMS)
def test_the_programs_never_import_one_another(package: str) -> None:
    others = set(PROGRAMS) - {package}
    assert not {path: names & others for path, names in imports(package).items() if names & others}


def test_modelstore_needs_the_standard_library_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"modelstore"}
    assert not {path: names - allowed for path, names in imports("modelstore").items() if names - allowed}


def shape(name: str) -> tuple[list[int], list[str]]:
    """Heading levels and commands of a README."""
    text = (ROOT / name).read_text(encoding="utf-8")
    levels = [
        len(mark) for mark in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    ]
    return levels, re.findall(r"```(?:bash|python)\n(.*?)```", text, re.DOTALL)


def test_the_two_readmes_have_the_same_headings_and_commands() -> None:
    assert shape("README.md") == shape("README.zh-CN.md")


def test_every_make_command_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").glob("*.md")]:
        named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert {a or b for a, b in named} <= targets, path


def test_make_help_lists_every_target() -> None:
    said = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for target in re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert f"make {target}" in said


def test_locks_pin_everything_and_name_no_host() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line), (path.name, line)


SAME_ON_CUDA = (
    "xllamacpp",
    "cyllama",
    "gguf",
    "peft",
    "sentencepiece",
    "protobuf",
    "pydantic",
    "click",
    "rich",
    "certifi",
)


def test_shared_pins_agree() -> None:
    seen: dict[str, tuple[str, str]] = {}
    dictated = (
        "trainer-cuda.lock",
        "vllm.lock",
    )  # Unsloth and vLLM pin what they need; nothing shares their environments
    for path in (path for path in (ROOT / "requirements").glob("*.lock") if path.name not in dictated):
        for line in path.read_text().splitlines():
            name, _, version = line.lower().replace("_", "-").partition("==")
            if path.stem == "trainer-cuda" and name not in SAME_ON_CUDA:
                continue  # Unsloth sets the versions of that stack
            assert seen.setdefault(name, (version, path.name))[0] == version, (line, path.name, seen[name])


def test_the_table_of_faults_is_what_its_tests_said() -> None:
    subprocess.run([sys.executable, "tools/faults.py", "--check"], cwd=ROOT, check=True)


def test_the_benchmark_page_is_what_the_results_say() -> None:
    subprocess.run([sys.executable, "tools/benchmark_page.py", "--check"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "tools/measured.py", "--check"], cwd=ROOT, check=True)
    python = ROOT / ".venv/clients/bin/python"  # which has matplotlib
    subprocess.run([str(python), "tools/benchmark_plots.py", "--check"], cwd=ROOT, check=True)
