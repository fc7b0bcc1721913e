"""The exporter on stores in every state."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from modelstore import Store
from modelstore.exporter import metrics, serve


def lines(store: Store) -> dict[str, str]:
    text = metrics(store)
    assert text.endswith("\n")
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert lines(Store(tmp_path / "none")) == {"tuneship_store_runs": "0"}


def test_a_training_under_way_shows_its_newest_figures(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    work = store.work("20261124-1000-a-b-0001")
    work.mkdir()
    log = '{"step": 5, "loss": 2.5, "tokens_per_s": 100.0}\n{"step": 10, "held_out_loss": 2.0}\n{"step": 11, "lo'
    (work / "training.jsonl").write_text(log)
    found = lines(store)
    run = '{run="20261124-1000-a-b-0001"}'
    assert found[f"tuneship_training_active{run}"] == "1"
    assert found[f"tuneship_training_step{run}"] == "10.0" and found[f"tuneship_training_loss{run}"] == "2.5"
    assert found[f"tuneship_training_held_out_loss{run}"] == "2.0"
    assert float(found["tuneship_store_free_bytes"]) > 0


def test_it_answers_scrapes_and_nothing_else(tmp_path: Path) -> None:
    server = serve(Store(tmp_path), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain") and b"tuneship_store_runs 0" in reply.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/", timeout=5)
    finally:
        server.shutdown()
        server.server_close()
