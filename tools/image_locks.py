#!/usr/bin/env python3
"""Asks pip's index what each lock means: writes the hashes that images install by, and every package's stated licence.

usage: tools/image_locks.py            after a lock has changed; needs the index, downloads metadata only
       tools/image_locks.py --check    whether the files belong to the locks; needs no index

requirements/hashed/NAME.txt holds the SHA-256 of each wheel for the platform of the images (linux, x86_64, Python
3.11), for `pip install --require-hashes`. requirements/licences.json holds what packages say of their licence;
tools/licences.py judges it. Standard library only; makes an environment with a pip that knows licence expressions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
LICENCES = REQUIREMENTS / "licences.json"
IN_IMAGES = ("clients", "server", "trainer", "trainer-cuda", "converter", "embedded")
OTHERS = ("vllm", "dev", "browser", "schemathesis", "audit")
# vLLM's image brings a Python of its own, in which the gateway runs
PYTHONS = {"server": ("3.11", "3.12", "3.13")}
# PyTorch's CPU build has one hash for each index that carries it, so its version alone is pinned
WITHOUT_HASH = {("trainer", "torch")}
PIP = "pip==26.3"
GLIBC_MINORS = range(36, 4, -1)  # up to that of Debian 12, the base of the images
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def pins(name: str) -> dict[str, str]:
    """The lock's versions by normalised name."""
    lines = (REQUIREMENTS / f"{name}.lock").read_text(encoding="utf-8").split()
    return {normal(package): version for package, version in (line.split("==") for line in lines)}


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def ask_index(pip: Path, name: str) -> list[dict[str, Any]]:
    """What pip would install in each Python of the images: wheels with their addresses, hashes and metadata."""
    return [wheel for python in PYTHONS.get(name, ("3.11",)) for wheel in _ask_index(pip, name, python)]


def _ask_index(pip: Path, name: str, python: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        platform = [part for each in PLATFORMS for part in ("--platform", each)]
        argv = [str(pip), "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", str(report)]
        argv += [*platform, "--python-version", python, "--only-binary", ":all:", "--target", folder]
        # the machine's own folders of wheels may hold builds of its own; the mirror that it names is kept
        environment = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
        subprocess.run([*argv, "-r", str(REQUIREMENTS / f"{name}.lock")], check=True, env=environment)
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    local = [each["metadata"]["name"] for each in found if each["download_info"]["url"].startswith("file:")]
    if local:
        sys.exit(
            f"error: {', '.join(local)} would come from this machine's disk. PIP_CONFIG_FILE=/dev/null asks the index"
        )
    return found


def hashed(name: str, wheels: list[dict[str, Any]]) -> str:
    """The lock with the hashes of its wheels, one for each Python where they differ."""
    hashes: dict[str, list[str]] = {}
    for wheel in wheels:
        package, digest = normal(wheel["metadata"]["name"]), wheel["download_info"]["archive_info"]["hashes"]["sha256"]
        if (name, package) not in WITHOUT_HASH:
            hashes.setdefault(f"{package}=={wheel['metadata']['version']}", []).append(f"--hash=sha256:{digest}")
    pythons = ", ".join(PYTHONS.get(name, ("3.11",)))
    head = f"# {name}.lock for images: linux, x86_64, Python {pythons}. Written by tools/image_locks.py\n"
    return head + "".join(f"{pin} {' '.join(dict.fromkeys(found))}\n" for pin, found in sorted(hashes.items()))


def stated(wheel: dict[str, Any]) -> dict[str, Any]:
    """What a package says of its licence: an SPDX expression, or the older free text and classifiers."""
    metadata = wheel["metadata"]
    text = " ".join((metadata.get("license") or "").split())
    classes = [each.split(" :: ")[-1] for each in metadata.get("classifier", []) if each.startswith("License ::")]
    said = {"expression": metadata.get("license_expression"), "text": text[:80], "classifiers": classes}
    return {key: value for key, value in said.items() if value}


def write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = Path(folder) / "bin" / "pip"
        subprocess.run([str(pip), "install", "--quiet", PIP], check=True)
        reports = {name: ask_index(pip, name) for name in IN_IMAGES + OTHERS}
    keep(reports)


def keep(reports: dict[str, list[dict[str, Any]]]) -> None:
    (REQUIREMENTS / "hashed").mkdir(exist_ok=True)
    for name in IN_IMAGES:
        (REQUIREMENTS / "hashed" / f"{name}.txt").write_text(hashed(name, reports[name]), encoding="utf-8")
    said = {
        f"{normal(wheel['metadata']['name'])}=={wheel['metadata']['version']}": stated(wheel)
        for wheels in reports.values()
        for wheel in wheels
    }
    LICENCES.write_text(json.dumps(dict(sorted(said.items())), indent=1) + "\n", encoding="utf-8")


def mistakes() -> list[str]:
    """Where files and locks differ."""
    wrong = []
    for name in IN_IMAGES:
        path = REQUIREMENTS / "hashed" / f"{name}.txt"
        lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        found = dict(line.split("==") for line in lines)
        for package, version in pins(name).items():
            if (name, package) not in WITHOUT_HASH and not re.fullmatch(
                rf"{re.escape(version)}( --hash=sha256:[0-9a-f]{{64}})+", found.pop(package, "")
            ):
                wrong.append(f"requirements/hashed/{name}.txt has no hash of {package} {version}")
        wrong += [f"requirements/hashed/{name}.txt has {package}, and the lock has not" for package in found]
    known = json.loads(LICENCES.read_text(encoding="utf-8"))
    wanted = {f"{package}=={version}" for name in IN_IMAGES + OTHERS for package, version in pins(name).items()}
    wrong += [f"requirements/licences.json lacks {pin}" for pin in sorted(wanted - set(known))]
    return wrong + [f"requirements/licences.json has {pin}, and no lock has" for pin in sorted(set(known) - wanted)]


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not sys.argv[1:]:
        write()
    wrong = mistakes()
    for each in wrong:
        print(f"{each}. tools/image_locks.py writes it again.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
