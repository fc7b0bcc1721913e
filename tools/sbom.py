#!/usr/bin/env python3
"""Lists what lies in images, one CycloneDX file each: Python's packages with their licences, and Debian's.

usage: tools/sbom.py IMAGE … [--to sbom]

Each image is started once, without a network, and asked with its own Python. Needs a Docker engine and the development
environment (cyclonedx-python-lib).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# runs in the image, where only the standard library is sure
PROBE = r"""
import glob, json, sys
from importlib import metadata
places = dict.fromkeys([*glob.glob("/opt/venv/lib/python3*/site-packages"), "/opt/venv/converter", *sys.path[1:]])
found = {}
for each in metadata.distributions(path=list(places)):
    data = each.metadata
    said = [c.split(" :: ")[-1] for c in data.get_all("Classifier", []) if c.startswith("License ::")]
    found.setdefault((data["Name"], data["Version"]), {
        "name": data["Name"], "version": data["Version"], "expression": data.get("License-Expression", ""),
        "text": " ".join((data.get("License") or "").split())[:80], "classifiers": said})
debian = []
for block in open("/var/lib/dpkg/status").read().split("\n\n"):
    fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " ")
    if fields.get("Status") == "install ok installed":
        debian.append([fields["Package"], fields["Version"], fields["Architecture"]])
print(json.dumps({"python": list(found.values()), "debian": debian}))
"""


def ask_image(image: str) -> dict[str, Any]:
    """What the image says is installed in it. Raises RuntimeError with the engine's words."""
    argv = ["docker", "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "python3", image, "-"]
    done = subprocess.run(argv, input=PROBE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{image}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bill(image: str, image_id: str, found: dict[str, Any]) -> str:
    """CycloneDX 1.6 as JSON."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    described = Component(name=image, version=image_id, type=ComponentType.CONTAINER, bom_ref=image)
    bom = Bom()
    bom.metadata.component = described
    for each in found["python"]:
        purl = PackageURL("pypi", None, re.sub(r"[-_.]+", "-", each["name"]).lower(), each["version"])
        component = Component(
            name=each["name"], version=each["version"], purl=purl, bom_ref=str(purl), licenses=_licences(each)
        )
        bom.components.add(component)
        bom.register_dependency(described, [component])
    for name, version, architecture in found["debian"]:
        purl = PackageURL("deb", "debian", name, version, {"arch": architecture})
        component = Component(name=name, version=version, purl=purl, bom_ref=str(purl))
        bom.components.add(component)
        bom.register_dependency(described, [component])
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _licences(said: dict[str, Any]) -> list[Any]:
    """The package's own expression, or else its older words as a name."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    if said["expression"]:
        return [LicenseExpression(said["expression"])]
    words = [said["text"]] if said["text"] else said["classifiers"]
    return [DisjunctiveLicense(name=word) for word in words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--to", type=Path, default=Path("sbom"))
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    for image in arguments.images:
        try:
            found = ask_image(image)
        except RuntimeError as error:
            print(f"error: {error}\n`docker compose --profile '*' build` makes the images.", file=sys.stderr)
            return 1
        image_id = subprocess.check_output(["docker", "image", "inspect", "--format", "{{.Id}}", image], text=True)
        file = arguments.to / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', image)}.cdx.json"
        file.write_text(bill(image, image_id.strip(), found), encoding="utf-8")
        print(f"{file}: {len(found['python'])} Python and {len(found['debian'])} Debian packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
