"""Prometheus with the real configuration scrapes a real server and a real store."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compose import ROOT, SERVE, Project, ask, docker, wait_for

CONFIGURATION = ROOT / "docker" / "observability"
# what vLLM's own metrics are called; no vLLM runs here
OF_VLLM = {"vllm:prompt_tokens_total"}
# only there while something happens
AT_TIMES = {"tuneship_training_held_out_loss"}


def test_promtool_accepts_the_configuration_and_every_alert_fires_when_it_should(stand_ins: dict[str, str]) -> None:
    promtool = ["run", "--rm", "--entrypoint", "promtool", "-v", f"{CONFIGURATION}:/etc/prometheus:ro"]
    image = stand_ins["PROMETHEUS_IMAGE"]
    assert "SUCCESS" in docker(*promtool, image, "check", "config", "/etc/prometheus/prometheus.yml")
    assert "SUCCESS" in docker(*promtool, image, "test", "rules", "/etc/prometheus/alerts_test.yml")


def test_every_target_is_scraped_and_every_panel_has_its_metric(
    project: Callable[..., Project], stand_ins: dict[str, str], shared_store: Path
) -> None:
    kit = project("metrics", TUNESHIP_STORE=str(shared_store), TUNESHIP_PROMETHEUS_PORT="0", **stand_ins)
    kit.must(*SERVE, "--profile", "observability", "up", "-d", "--wait", "--no-build", "server-llamacpp", "prometheus")
    body = {"model": "tuned", "messages": [{"role": "user", "content": "How long? (0)"}], "max_tokens": 8}
    assert ask(f"{kit.url}/v1/chat/completions", body)[0] == 200
    address = "http://" + kit.must("--profile", "observability", "port", "prometheus", "9090").strip()

    def query(expression: str) -> list[Any]:
        answer = ask(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")[1]
        return list(answer["data"]["result"])

    wait_for(lambda: len([r for r in query("up") if r["value"][1] == "1"]) == 3, 60, "three targets that are up")
    wait_for(lambda: query('tuneship_requests_total{model="tuned",code="200"}'), 30, "a counted request")
    wanted = _metrics_of_dashboard() | _metrics((CONFIGURATION / "alerts.yml").read_text())
    assert len(wanted) > 15
    assert not {name for name in wanted - OF_VLLM - AT_TIMES if not query(f'{{__name__="{name}"}}')}
    assert query("tuneship_training_step")[0]["value"][1] == "30"
    rules = ask(f"{address}/api/v1/rules")[1]["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}


def _metrics_of_dashboard() -> set[str]:
    board = json.loads((CONFIGURATION / "dashboards" / "tuneship.json").read_text())
    return _metrics(" ".join(target["expr"] for panel in board["panels"] for target in panel["targets"]))


def _metrics(text: str) -> set[str]:
    return set(re.findall(r"\b(?:tuneship_|llamacpp:|vllm:)\w+", text))
