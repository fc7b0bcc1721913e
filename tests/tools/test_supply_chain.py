"""Hashes, licences, bills of materials: what is installed is what was locked, under terms that somebody has read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import licences  # noqa: E402  scripts, not packages
import sbom  # noqa: E402

RULES: dict[str, Any] = {
    "allowed": ["MIT", "Apache-2.0", "BSD-3-Clause"],
    "words": {"MIT License": "MIT"},
    "packages": {"known": {"licence": "AGPL-3.0-only", "why": "is used by nobody but its developers"}},
    "licences": {},
}


def test_every_lock_of_an_image_has_its_hashes_and_every_lock_its_licences() -> None:
    subprocess.run([sys.executable, "tools/image_locks.py", "--check"], cwd=ROOT, check=True)


def test_the_page_of_licences_is_up_to_date_and_refuses_nothing() -> None:
    subprocess.run([sys.executable, "tools/licences.py", "--check"], cwd=ROOT, check=True)


def test_images_install_by_hash_and_torch_for_cpus_alone_does_not() -> None:
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
        installed = re.findall(r"(?:/install/pip|pip download) ([^&|]+)", text)
        assert installed, path
        without = [words for words in installed if "--require-hashes" not in words]
        assert [words.strip() for words in without] == ['--no-deps "$torch"'] * (path.name == "trainer.Dockerfile"), (
            path
        )


@pytest.mark.parametrize(
    ("said", "is_accepted"),
    [
        ({"expression": "MIT"}, True),
        ({"expression": "MIT AND BSD-3-Clause"}, True),
        ({"expression": "AGPL-3.0-only OR MIT"}, True),
        ({"expression": "Apache-2.0 WITH LLVM-exception"}, True),
        ({"classifiers": ["MIT License"]}, True),
        ({"text": "MIT"}, True),
        ({"expression": "AGPL-3.0-only"}, False),
        ({"expression": "MIT AND AGPL-3.0-or-later"}, False),
        ({"expression": "(MIT)"}, False),
        ({"text": "see the file LICENSE"}, False),
        ({}, False),
    ],
)
def test_what_is_not_allowed_or_unknown_is_refused(said: dict[str, Any], is_accepted: bool) -> None:
    (judged,) = licences.judge({"some==1.0": said}, RULES, {"server": {"some": "1.0"}})
    assert judged.is_accepted is is_accepted
    assert judged.locks == ("server",)


def test_a_line_that_explains_lets_a_package_in() -> None:
    (judged,) = licences.judge({"known==1.0": {}}, RULES, {"server": {"known": "1.0"}})
    assert judged.is_accepted and judged.licence == "AGPL-3.0-only" and judged.why in licences.page([judged])


def test_unsloth_is_listed_as_what_its_files_say() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    assert re.search(
        r"^\| unsloth \| \S+ \| Apache-2.0 AND AGPL-3.0-or-later \| trainer \(cuda\) \|$", page, re.MULTILINE
    )


def test_a_bill_of_materials_is_valid_cyclonedx() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = {
        "python": [
            {"name": "Some.Thing", "version": "1.0", "expression": "MIT", "text": "", "classifiers": []},
            {"name": "old", "version": "2.0", "expression": "", "text": "BSD", "classifiers": ["BSD License"]},
            {"name": "mute", "version": "3.0", "expression": "", "text": "", "classifiers": []},
        ],
        "debian": [["libc6", "2.36-9+deb12u14", "amd64"]],
    }
    written = sbom.bill("tuneship/clients:local-cpu", "sha256:0", found)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    components = {each["purl"]: each.get("licenses") for each in json.loads(written)["components"]}
    assert components == {
        "pkg:pypi/some-thing@1.0": [{"expression": "MIT"}],
        "pkg:pypi/old@2.0": [{"license": {"name": "BSD"}}],
        "pkg:pypi/mute@3.0": None,
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64": None,
    }


def test_an_image_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "tools/sbom.py", "tuneship/no-such-image:none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "tuneship/no-such-image:none" in done.stderr and "Traceback" not in done.stderr
