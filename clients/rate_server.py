"""The local server of the rating page: pairs in an order of each rater's own, models hidden, every click kept."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clients.ratings import FILE, HIGHEST, LOWEST, Rating, keep_rating, read_ratings
from modelstore import UserError

PAGE = Path(__file__).parent / "rate.html"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Pair:
    """One question with both answers."""

    question_id: str
    question: str
    base: str
    tuned: str


class RatingDesk:
    """What is rated and what was said about it."""

    def __init__(self, pairs: Sequence[Pair], file: Path) -> None:
        self.pairs = {pair.question_id: pair for pair in pairs}
        self.file = file
        self._lock = threading.Lock()

    def todo(self, rater: str) -> list[dict[str, Any]]:
        """The pairs in this rater's order, with what this rater said already; nothing tells which model is which."""
        said = {one.question_id: one for one in read_ratings(self.file) if one.rater == rater}
        order = sorted(self.pairs)
        random.Random(f"order {rater}").shuffle(order)  # noqa: S311  a fair order, not a secret
        return [self._shown(rater, self.pairs[name], said.get(name)) for name in order]

    def _shown(self, rater: str, pair: Pair, said: Rating | None) -> dict[str, Any]:
        sides = self._sides(rater, pair.question_id)
        row: dict[str, Any] = {"id": pair.question_id, "question": pair.question, "rating": None}
        for side, model in zip(("left", "right"), sides, strict=True):
            row[side] = getattr(pair, model)
        if said:
            scores = {side: getattr(said, model) for side, model in zip(("left", "right"), sides, strict=True)}
            row["rating"] = scores | {"same": said.same}
        return row

    def _sides(self, rater: str, question_id: str) -> tuple[str, str]:
        """Which model stands left and right, by lot, the same whenever this rater sees the pair."""
        is_swapped = random.Random(f"sides {rater} {question_id}").random() < 0.5  # noqa: S311
        return ("tuned", "base") if is_swapped else ("base", "tuned")

    def rate(self, wish: Any) -> int:
        """Keep a click; returns how many pairs this rater has rated. Raises ValueError for what is no rating."""
        if not isinstance(wish, dict) or wish.get("id") not in self.pairs:
            raise ValueError("no such pair")
        rater = str(wish.get("rater", "")).strip()[:80]
        if not rater:
            raise ValueError("a rater needs a name")
        scores = {side: _score(wish.get(side)) for side in ("left", "right")}
        same = wish.get("same") is True
        if not same and None in scores.values():
            raise ValueError("both answers need a score")
        sides = dict(zip(self._sides(rater, wish["id"]), scores.values(), strict=True))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            keep_rating(self.file, Rating(rater, wish["id"], sides["base"], sides["tuned"], same, now))
            return sum(one.rater == rater for one in read_ratings(self.file))


def _score(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not LOWEST <= value <= HIGHEST:
        raise ValueError(f"a score from {LOWEST} to {HIGHEST} is expected")
    return value


def desk(report: Path) -> RatingDesk:
    """The pairs of a report.json that both models answered. Raises UserError when there is none."""
    page = json.loads(report.read_text(encoding="utf-8"))
    pairs = [
        Pair(row["id"], row["question"], row["base"]["text"], row["tuned"]["text"])
        for row in page["answers"]
        if row["base"]["score"] and row["tuned"]["score"]
    ]
    if not pairs:
        raise UserError(f"{report} holds no question that both models answered, so there is nothing to rate.")
    return RatingDesk(pairs, report.parent / FILE)


def server(desk: RatingDesk, host: str, port: int) -> ThreadingHTTPServer:
    """Ready to serve. Raises UserError when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if not self._is_ours():
                self._say(403, {"error": "this page is served to this machine only"})
            elif url.path == "/":
                self._send(200, "text/html; charset=utf-8", PAGE.read_bytes())
            elif url.path == "/pairs":
                rater = parse_qs(url.query).get("rater", [""])[0].strip()[:80]
                self._say(200, desk.todo(rater) if rater else [])
            else:
                self._say(404, {"error": "not here"})

        def do_POST(self) -> None:
            is_json = self.headers.get("Content-Type", "").startswith("application/json")
            if not self._is_ours() or not is_json or self.path != "/rate":
                self._say(403, {"error": "not allowed"})
                return
            try:
                wish = json.loads(self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 65536)))
                self._say(200, {"rated": desk.rate(wish)})
            except ValueError as error:
                self._say(400, {"error": str(error)})

        def _is_ours(self) -> bool:
            """Other sites' scripts must not reach a loopback page through a name of theirs."""
            return host not in LOOPBACK or self.headers.get("Host", "").rpartition(":")[0] in LOOPBACK

        def _say(self, status: int, body: Any) -> None:
            self._send(status, "application/json", json.dumps(body, ensure_ascii=False).encode())

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
            self.end_headers()
            self.wfile.write(data)

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be served: {error.strerror}. Name another with --port.") from None
