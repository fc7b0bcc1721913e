#!/usr/bin/env python3
"""Builds the cpu images from nothing and measures them: seconds, bytes on disk, bytes of a compressed archive.

usage: benchmarks/containers.py RESULT.json

Takes DOCKER_HOST, PYTHON_IMAGE and TUNESHIP_WHEELS from the environment, as compose does. Layers are not reused
(`--no-cache`); pip's downloads are, from the builder's cache mount. The compressed size is that of
`docker save | gzip -6`, base image included: about what a registry would hand out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SERVICES = {"eval": "clients", "server-llamacpp": "server-llamacpp", "trainer": "trainer"}
BUDGET_MB = {"clients": 200, "server-llamacpp": 500, "trainer": 2000}


def output(*argv: str) -> str:
    return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def measured(service: str, name: str) -> dict[str, Any]:
    """One image."""
    began = time.monotonic()
    output("docker", "compose", "--profile", "*", "build", "--no-cache", service)
    seconds = time.monotonic() - began
    image = f"tuneship/{name}:{os.environ.get('TUNESHIP_TAG', 'local')}-cpu"
    archive = f"docker save {image} | gzip -6 | wc -c"
    return {
        "image": name,
        "build_s": round(seconds, 1),
        "bytes": int(output("docker", "image", "inspect", "--format", "{{.Size}}", image)),
        "compressed_bytes": int(output("sh", "-c", archive)),
        "budget_mb": BUDGET_MB[name],
    }


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    base = os.environ.get("PYTHON_IMAGE", "")
    result = {
        "command": f"benchmarks/containers.py {sys.argv[1]}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "HEAD"),
        "system": platform.platform(),
        "threads": os.cpu_count(),
        "docker": output("docker", "version", "--format", "{{.Server.Version}}"),
        "compose": output("docker", "compose", "version", "--short"),
        "base_image": base or "the default of the Dockerfiles",
        "base_bytes": int(output("docker", "image", "inspect", "--format", "{{.Size}}", base)) if base else None,
        "images": [measured(service, name) for service, name in SERVICES.items()],
    }
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for image in result["images"]:
        print(json.dumps(image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
