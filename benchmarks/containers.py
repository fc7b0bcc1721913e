#!/usr/bin/env python3
"""Builds images from nothing and measures them: seconds, bytes on disk, bytes of a compressed archive.

usage: benchmarks/containers.py RESULT.json            the cpu images
       benchmarks/containers.py RESULT.json --cuda     the CUDA image of the trainer: 3 GB of wheels

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
CUDA_SERVICES = {"trainer": "trainer"}
BUDGET_MB = {"clients": 200, "server-llamacpp": 500, "trainer": 2000}
IMPORTED = (
    "torch",
    "triton",
    "bitsandbytes",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "cyllama",
    "xllamacpp",
    "unsloth",
)
# how far the CUDA image comes on a machine without a GPU
PROBE = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = str(getattr(importlib.import_module(name), "__version__", "imported"))
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"[:200]
import torch
try:
    torch.zeros(1).cuda()
    found["a tensor on the GPU"] = "yes"
except Exception as error:
    found["a tensor on the GPU"] = f"{type(error).__name__}: {error}"[:80]
print(json.dumps(found))
"""


def output(*argv: str) -> str:
    return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def measured(service: str, name: str, accelerator: str) -> dict[str, Any]:
    """One image."""
    files = ["-f", "compose.yaml", *(["-f", "compose.gpu.yaml"] if accelerator == "cuda" else [])]
    began = time.monotonic()
    output("docker", "compose", *files, "--profile", "*", "build", "--no-cache", service)
    seconds = time.monotonic() - began
    image = f"tuneship/{name}:{os.environ.get('TUNESHIP_TAG', 'local')}-{accelerator}"
    archive = f"docker save {image} | gzip -{6 if accelerator == 'cpu' else 1} | wc -c"
    result = {
        "image": name if accelerator == "cpu" else f"{name}, {accelerator}",
        "build_s": round(seconds, 1),
        "bytes": int(output("docker", "image", "inspect", "--format", "{{.Size}}", image)),
        "compressed_bytes": int(output("sh", "-c", archive)),
        "budget_mb": BUDGET_MB[name] if accelerator == "cpu" else None,
    }
    return result if accelerator == "cpu" else result | {"probe": probed(image)}


def probed(image: str) -> dict[str, str]:
    """What can be imported as the unprivileged user with a read-only root, and where a GPU is missed."""
    run = ["docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--entrypoint", "python3", image]
    said = output(*run, "-c", PROBE, *IMPORTED)
    found: dict[str, str] = json.loads(said.splitlines()[-1])
    assert "--config" in output(*run[:-3], image, "train", "--help"), "the entry point does not start"
    return found


def main() -> int:
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--cuda"]):
        print(__doc__, file=sys.stderr)
        return 2
    services, accelerator = (CUDA_SERVICES, "cuda") if sys.argv[2:] else (SERVICES, "cpu")
    base = os.environ.get("PYTHON_IMAGE", "")
    result = {
        "command": f"benchmarks/containers.py {' '.join(sys.argv[1:])}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "HEAD"),
        "system": platform.platform(),
        "threads": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "docker": output("docker", "version", "--format", "{{.Server.Version}}"),
        "compose": output("docker", "compose", "version", "--short"),
        "base_image": base or "the default of the Dockerfiles",
        "base_bytes": int(output("docker", "image", "inspect", "--format", "{{.Size}}", base)) if base else None,
        "images": [measured(service, name, accelerator) for service, name in services.items()],
    }
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for image in result["images"]:
        print(json.dumps(image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
