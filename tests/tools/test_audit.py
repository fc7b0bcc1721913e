"""make audit: what is named, what is unknown, and that unknown is never taken for safe."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import audit  # noqa: E402  a script, not a package

VULNERABLE = "greenlet"
NEEDS_PIP_AUDIT = pytest.mark.skipif(not audit.PROGRAM.exists(), reason="tools/envs.py audit was not run")


def test_named_wins_over_unknown_and_unknown_is_not_safe() -> None:
    findings = audit.Findings()
    assert findings.exit_code == 0
    audit.read("a.lock", [{"name": "x", "version": "1", "vulns": []}, {"name": "y", "skip_reason": "gone"}], findings)
    assert (findings.exit_code, findings.unknown) == (2, ["a.lock: gone"])
    advisory = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"], "description": ""}
    audit.read("a.lock", [{"name": "x", "version": "1", "vulns": [advisory]}], findings)
    assert (findings.exit_code, findings.named) == (1, ["a.lock: x 1: PYSEC-1, CVE-1; mended in 2"])


@pytest.fixture
def advisories() -> Iterator[str]:
    """A database in the form of OSV's that names every version of one package."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            package = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}]
            advisory = {"id": "PYSEC-0", "modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z"}
            advisory |= {"summary": "bad", "affected": [{"package": package, "ranges": ranges}]}
            body = json.dumps({"vulns": [advisory]} if package["name"] == VULNERABLE else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@NEEDS_PIP_AUDIT
@pytest.mark.parametrize(("lock", "code"), [("browser", 1), ("converter", 0)])
def test_the_real_pip_audit_asks_for_every_pin(advisories: str, lock: str, code: int) -> None:
    findings = audit.Findings()
    audit.audit(ROOT / "requirements" / f"{lock}.lock", ["-s", "osv", "--osv-url", advisories], findings)
    assert findings.exit_code == code, findings
    assert all(line.startswith(f"browser.lock: {VULNERABLE} ") for line in findings.named)


@NEEDS_PIP_AUDIT
def test_a_database_that_does_not_answer_is_no_good_news() -> None:
    argv = [sys.executable, "tools/audit.py", "-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "not looked up" in done.stderr and "Traceback" not in done.stderr
